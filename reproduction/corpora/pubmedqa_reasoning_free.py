"""PubMedQA with the article's conclusion in place of its abstract. In the form in which the suite asks."""

from reproduction.corpora.corpus import Corpus, Published
from reproduction.corpora.pubmedqa import FILES, GET, HUB, asked


def _conclusion(row: Published) -> str:
    return str(row["LONG_ANSWER"] if "LONG_ANSWER" in row else row["long_answer"])


CORPUS = Corpus(
    "pubmedqa-reasoning-free",
    "PubMedQA with the conclusion given, labelled by experts",
    "MIT",
    lambda rows: asked(rows, _conclusion),
    files=FILES,
    hub=HUB,
    get=GET,
    example=(
        {
            "LONG_ANSWER": "A daily walk lowered the pulse of all forty adults.",
            "QUESTION": "Does daily walking lower the resting pulse?",
            "final_decision": "yes",
        },
        {
            "LONG_ANSWER": "Coughs lasted as long with the syrup as with water.",
            "QUESTION": "Does the syrup shorten a cough?",
            "final_decision": "no",
        },
    ),
)
