"""PubMedQA in its authors' reasoning-free setting: the article's conclusion in place of its abstract."""

from collections.abc import Sequence

from inferaligner.evaluation.suites.published import Published, Row
from inferaligner.evaluation.suites.suite import Item, Suite


def _read(rows: Sequence[Row]) -> list[Item]:
    return [
        Item(
            f"{row['LONG_ANSWER']}\n\nQuestion: {row['QUESTION']} Answer yes, no or maybe.",
            choices=("yes", "no", "maybe"),
            answer=row["final_decision"],
        )
        for row in rows
    ]


SUITE = Suite(
    "pubmedqa-reasoning-free",
    "PubMedQA with the conclusion given, by log-likelihood",
    "utility",
    Published(
        ("pubmedqa/ori_pqal.json",),
        _read,
        "https://github.com/pubmedqa/pubmedqa (data/ori_pqal.json)",
    ),
    "pick",
    citation="Jin et al. 2019, arXiv 1909.06146",
    licence="MIT",
)
