"""PubMedQA with the article's conclusion in place of its abstract. In the form in which the suite asks."""

from collections.abc import Sequence

from reproduction.corpora.corpus import Corpus, Hub, Published, Row


def _read(rows: Sequence[Published]) -> list[Row]:
    return [_row(row) for row in rows]


def _row(row: Published) -> Row:
    # The hub has other names for the same columns than the publisher.
    conclusion: str = row["LONG_ANSWER"] if "LONG_ANSWER" in row else row["long_answer"]
    question: str = row["QUESTION"] if "QUESTION" in row else row["question"]
    prompt = f"{conclusion}\n\nQuestion: {question} Answer yes, no or maybe."
    return Row(prompt, row["final_decision"], prompt)


CORPUS = Corpus(
    "pubmedqa-reasoning-free",
    "PubMedQA with the conclusion given, labelled by experts",
    "MIT",
    _read,
    files=("pubmedqa/ori_pqal.json",),
    hub=Hub("qiaojin/PubMedQA", config="pqa_labeled"),
    get="https://github.com/pubmedqa/pubmedqa (data/ori_pqal.json)",
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
