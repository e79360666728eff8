"""MedQA: questions of the US medical licence, four options, answered by the letter."""

from collections.abc import Sequence

from inferaligner.evaluation.suites.medqa import multiple_choice
from reproduction.corpora.corpus import Corpus, Hub, Published, Row


def _read(rows: Sequence[Published]) -> list[Row]:
    found = []
    for row in rows:
        options = row["options"]
        texts = options if isinstance(options, dict) else {o["key"]: o["value"] for o in options}
        item = multiple_choice(row["question"], texts, row["answer_idx"])
        found.append(Row(item.prompt, row["answer_idx"], item.prompt))
    return found


CORPUS = Corpus(
    "medqa",
    "MedQA, US, four options",
    "MIT",
    _read,
    files=("medqa/medqa_us_4options_train.jsonl", "medqa_test/medqa_us_4options_test.jsonl"),
    hub=Hub("GBaker/MedQA-USMLE-4-options"),
    get="https://github.com/jind11/MedQA (data_clean/questions/US/4_options)",
    example=(
        {
            "question": "A child's knee swells after a fall. What is done first?",
            "options": {"A": "Rest and ice", "B": "Surgery", "C": "A cast", "D": "Nothing"},
            "answer_idx": "A",
        },
        {
            "question": "Which vitamin does sunlight on the skin help to make?",
            "options": {"A": "A", "B": "B12", "C": "C", "D": "D"},
            "answer_idx": "D",
        },
    ),
)
