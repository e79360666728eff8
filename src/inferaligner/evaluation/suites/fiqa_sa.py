"""FiQA sentiment in the prompt form of PIXIU: 2350 test rows are 233 posts in ten wordings; one of each."""

from collections.abc import Sequence

from inferaligner.evaluation.suites.financial_rows import financial_rows
from inferaligner.evaluation.suites.published import Published, Row
from inferaligner.evaluation.suites.suite import Item, Suite


def _read(rows: Sequence[Row]) -> list[Item]:
    posts = {row["text"]: row for row in reversed(rows)}
    first = sorted(posts.values(), key=rows.index)
    return financial_rows(first, ("Positive", "Negative", "Neutral"))


SUITE = Suite(
    "fiqa-sa",
    "FiQA sentiment, distinct posts",
    "utility",
    Published(("pixiu_finance/fiqasa_test.jsonl",), _read, "https://github.com/The-FinAI/PIXIU"),
    "pick",
    citation="Maia et al. 2018, FiQA; PIXIU, arXiv 2306.05443",
    licence="public",
)
