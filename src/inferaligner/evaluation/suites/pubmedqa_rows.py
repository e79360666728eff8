"""Rows of PubMedQA as its authors publish them: a text of an article, a question on it, yes, no or maybe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inferaligner.evaluation.suites.published import Published, Row
from inferaligner.evaluation.suites.suite import Item


def abstract(row: Row) -> str:
    """The article's abstract without its conclusion."""
    return " ".join(row["CONTEXTS"])


def conclusion(row: Row) -> str:
    """The conclusion of the abstract."""
    return str(row["LONG_ANSWER"])


def pubmedqa(text: Callable[[Row], str]) -> Published:
    """The labelled set, each question behind a text of its article."""

    def read(rows: Sequence[Row]) -> list[Item]:
        return [
            Item(
                f"{text(row)}\n\nQuestion: {row['QUESTION']} Answer yes, no or maybe.",
                choices=("yes", "no", "maybe"),
                answer=row["final_decision"],
            )
            for row in rows
        ]

    return Published(
        ("pubmedqa/ori_pqal.json",), read, "https://github.com/pubmedqa/pubmedqa (data/ori_pqal.json)"
    )
