"""MedQA, by generating an answer and reading the letter in it."""

from collections.abc import Sequence

from inferaligner.evaluation.suites.multiple_choice import multiple_choice
from inferaligner.evaluation.suites.published import Published, Row
from inferaligner.evaluation.suites.suite import Item, Suite


def _read(rows: Sequence[Row]) -> list[Item]:
    items = []
    for row in rows:
        options = row["options"]
        texts = options if isinstance(options, dict) else {o["key"]: o["value"] for o in options}
        items.append(multiple_choice(row["question"], texts, row["answer_idx"]))
    return items


SUITE = Suite(
    "medqa-generated",
    "MedQA, by generating an answer and reading the letter in it",
    "utility",
    Published(
        ("medqa_test/medqa_us_4options_test.jsonl",),
        _read,
        "https://github.com/jind11/MedQA (data_clean/questions/US/4_options)",
    ),
    "name",
    citation="Jin et al. 2021, arXiv 2009.13081",
    licence="MIT",
)
