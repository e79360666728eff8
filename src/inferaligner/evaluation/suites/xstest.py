"""XSTest, safe prompts."""

from inferaligner.evaluation.suites.published import Published
from inferaligner.evaluation.suites.suite import Item, Suite

SUITE = Suite(
    "xstest",
    "XSTest, safe prompts",
    "over-refusal",
    Published(
        ("xstest/xstest_prompts.csv",),
        lambda rows: [Item(row["prompt"], row["type"]) for row in rows if row["label"] == "safe"],
        "https://github.com/paul-rottger/xstest (xstest_prompts.csv)",
    ),
    citation="Röttger et al. 2024, arXiv 2308.01263",
    licence="CC-BY-4.0",
)
