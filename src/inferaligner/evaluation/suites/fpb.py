"""Financial PhraseBank sentiment, in the prompt form of PIXIU."""

from inferaligner.evaluation.suites.financial_rows import financial_rows
from inferaligner.evaluation.suites.published import Published
from inferaligner.evaluation.suites.suite import Suite

SUITE = Suite(
    "fpb",
    "Financial PhraseBank sentiment",
    "utility",
    Published(
        ("pixiu_finance/fpb_valid_sample2500.jsonl",),
        lambda rows: financial_rows(rows, ("positive", "negative", "neutral")),
        "https://github.com/The-FinAI/PIXIU",
    ),
    "pick",
    citation="Malo et al. 2014, arXiv 1307.5336",
    licence="CC BY-NC-SA 3.0",
)
