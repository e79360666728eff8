"""Financial sets in the prompt form of PIXIU: a question, answered by one of a few words."""

from __future__ import annotations

from collections.abc import Sequence

from inferaligner.evaluation.suites.published import Published, Reader, Row
from inferaligner.evaluation.suites.suite import Item, Suite


def _reader(*choices: str) -> Reader:
    """Reads the rows whose answer is one of the choices, in capitals or not."""
    by_lower = {choice.lower(): choice for choice in choices}

    def read(rows: Sequence[Row]) -> list[Item]:
        items = []
        for row in rows:
            question, answer = row["conversations"][0]["value"], row["conversations"][1]["value"]
            choice = by_lower.get(answer.strip().lower())
            if choice is not None:
                items.append(Item(question, choices=choices, answer=choice))
        return items

    return read


def _distinct_posts(rows: Sequence[Row]) -> list[Item]:
    """The 2,350 rows are 233 posts in ten wordings; the first wording of each post is read."""
    posts = {row["text"]: row for row in reversed(rows)}
    return _reader("Positive", "Negative", "Neutral")(sorted(posts.values(), key=rows.index))


def _published(file: str, read: Reader) -> Published:
    return Published((f"pixiu_finance/{file}",), read, "https://github.com/The-FinAI/PIXIU")


FPB = Suite(
    "fpb",
    "Financial PhraseBank sentiment",
    "utility",
    _published("fpb_valid_sample2500.jsonl", _reader("positive", "negative", "neutral")),
    "pick",
    citation="Malo et al. 2014, arXiv 1307.5336",
    licence="CC BY-NC-SA 3.0",
)
FIQA_SA = Suite(
    "fiqa-sa",
    "FiQA sentiment, distinct posts",
    "utility",
    _published("fiqasa_test.jsonl", _distinct_posts),
    "pick",
    citation="Maia et al. 2018, FiQA; PIXIU, arXiv 2306.05443",
    licence="public",
)
HEADLINE = Suite(
    "headline",
    "Headline: gold news, yes or no",
    "utility",
    _published("headlines_valid_sample2500.jsonl", _reader("Yes", "No")),
    "pick",
    citation="Sinha and Khandait 2020, arXiv 2009.04202; PIXIU, arXiv 2306.05443",
    licence="CC BY-SA 3.0",
)
