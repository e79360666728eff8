"""MedQA: medical questions with lettered options; a model picks a letter or generates an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from inferaligner.evaluation.suites.published import Published, Row
from inferaligner.evaluation.suites.suite import Item, Suite


def multiple_choice(question: str, options: Mapping[str, str], answer: str) -> Item:
    """The question with its options below it; the answer is a letter."""
    lines = [question, "", *(f"{letter}. {text}" for letter, text in options.items())]
    lines += ["", "Answer with the letter alone."]
    return Item("\n".join(lines), choices=tuple(options), answer=answer)


def _read(rows: Sequence[Row]) -> list[Item]:
    items = []
    for row in rows:
        options = row["options"]
        texts = options if isinstance(options, dict) else {o["key"]: o["value"] for o in options}
        items.append(multiple_choice(row["question"], texts, row["answer_idx"]))
    return items


MEDQA = Suite(
    "medqa",
    "MedQA, by log-likelihood of the letter",
    "utility",
    Published(
        ("medqa_test/medqa_us_4options_test.jsonl",),
        _read,
        "https://github.com/jind11/MedQA (data_clean/questions/US/4_options)",
    ),
    "pick",
    citation="Jin et al. 2021, arXiv 2009.13081",
    licence="MIT",
)
MEDQA_GENERATED = replace(
    MEDQA,
    name="medqa-generated",
    title="MedQA, by generating an answer and reading the letter in it",
    task="name",
)
