"""PubMedQA: a question on an abstract; yes, no or maybe. In the form in which the suite asks."""

from collections.abc import Callable, Sequence

from reproduction.corpora.corpus import Corpus, Hub, Published, Row


def asked(rows: Sequence[Published], text: Callable[[Published], str]) -> list[Row]:
    """The question behind a text of its article, as the suites ask it."""
    return [_row(row, text(row)) for row in rows]


def _row(row: Published, text: str) -> Row:
    # The hub has other names for the same columns than the publisher.
    question: str = row["QUESTION"] if "QUESTION" in row else row["question"]
    prompt = f"{text}\n\nQuestion: {question} Answer yes, no or maybe."
    return Row(prompt, row["final_decision"], prompt)


def _abstract(row: Published) -> str:
    return " ".join(row["CONTEXTS"] if "CONTEXTS" in row else row["context"]["contexts"])


FILES = ("pubmedqa/ori_pqal.json",)
HUB = Hub("qiaojin/PubMedQA", config="pqa_labeled")
GET = "https://github.com/pubmedqa/pubmedqa (data/ori_pqal.json)"

CORPUS = Corpus(
    "pubmedqa",
    "PubMedQA, labelled by experts",
    "MIT",
    lambda rows: asked(rows, _abstract),
    files=FILES,
    hub=HUB,
    get=GET,
    example=(
        {
            "CONTEXTS": ["Forty adults walked daily.", "Their resting pulse fell by six beats."],
            "QUESTION": "Does daily walking lower the resting pulse?",
            "final_decision": "yes",
        },
        {
            "CONTEXTS": ["Two groups took the syrup or water.", "Coughs lasted as long in both."],
            "QUESTION": "Does the syrup shorten a cough?",
            "final_decision": "no",
        },
    ),
)
