"""Headline: gold news, yes or no, in the prompt form of PIXIU."""

from inferaligner.evaluation.suites.financial_rows import financial_rows
from inferaligner.evaluation.suites.published import Published
from inferaligner.evaluation.suites.suite import Suite

SUITE = Suite(
    "headline",
    "Headline: gold news, yes or no",
    "utility",
    Published(
        ("pixiu_finance/headlines_valid_sample2500.jsonl",),
        lambda rows: financial_rows(rows, ("Yes", "No")),
        "https://github.com/The-FinAI/PIXIU",
    ),
    "pick",
    citation="Sinha and Khandait 2020, arXiv 2009.04202; PIXIU, arXiv 2306.05443",
    licence="CC BY-SA 3.0",
)
