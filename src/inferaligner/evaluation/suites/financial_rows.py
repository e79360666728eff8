"""Rows in the conversation form of PIXIU: the question as it was asked, one of a few words as the answer."""

from __future__ import annotations

from collections.abc import Sequence

from inferaligner.evaluation.suites.published import Row
from inferaligner.evaluation.suites.suite import Item


def financial_rows(rows: Sequence[Row], choices: tuple[str, ...]) -> list[Item]:
    """Items of the rows whose answer is one of the choices, whatever its capitals."""
    known = {choice.lower(): choice for choice in choices}
    items = []
    for row in rows:
        question, answer = row["conversations"][0]["value"], row["conversations"][1]["value"].strip().lower()
        if answer in known:
            items.append(Item(question, choices=choices, answer=known[answer]))
    return items
