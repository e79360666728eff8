"""PubMedQA: a text of an article and a question about it, answered by yes, no or maybe.

The text is the abstract without its conclusion. The reasoning-free setting of the authors gives the
conclusion in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from inferaligner.evaluation.suites.published import Published, Row
from inferaligner.evaluation.suites.suite import Item, Suite


def _published(text: Callable[[Row], str]) -> Published:
    def read(rows: Sequence[Row]) -> list[Item]:
        return [
            Item(
                f"{text(row)}\n\nQuestion: {row['QUESTION']} Answer yes, no or maybe.",
                choices=("yes", "no", "maybe"),
                answer=row["final_decision"],
            )
            for row in rows
        ]

    get = "https://github.com/pubmedqa/pubmedqa (data/ori_pqal.json)"
    return Published(("pubmedqa/ori_pqal.json",), read, get)


PUBMEDQA = Suite(
    "pubmedqa",
    "PubMedQA, by log-likelihood",
    "utility",
    _published(lambda row: " ".join(row["CONTEXTS"])),
    "pick",
    citation="Jin et al. 2019, arXiv 1909.06146",
    licence="MIT",
)
PUBMEDQA_GENERATED = replace(
    PUBMEDQA, name="pubmedqa-generated", title="PubMedQA, by generating", task="name"
)
PUBMEDQA_REASONING_FREE = replace(
    PUBMEDQA,
    name="pubmedqa-reasoning-free",
    title="PubMedQA with the conclusion given, by log-likelihood",
    source=_published(lambda row: str(row["LONG_ANSWER"])),
)
