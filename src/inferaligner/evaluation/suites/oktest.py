"""OKTest."""

from inferaligner.evaluation.suites.published import Published
from inferaligner.evaluation.suites.suite import Item, Suite

OKTEST = Suite(
    "oktest",
    "OKTest",
    "over-refusal",
    Published(
        ("oktest/OKTest.csv",),
        lambda rows: [Item(row["prompt"].strip()) for row in rows],
        "https://github.com/InvokerStark/OverKill (data/OKTest.csv)",
    ),
    citation="Shi et al. 2024, arXiv 2401.17633",
    licence="none stated",
)
