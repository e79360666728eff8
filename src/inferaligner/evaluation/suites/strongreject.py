"""StrongREJECT forbidden prompts."""

from inferaligner.evaluation.suites.published import Published
from inferaligner.evaluation.suites.suite import Item, Suite

STRONGREJECT = Suite(
    "strongreject",
    "StrongREJECT forbidden prompts",
    "harmful",
    Published(
        ("strongreject/strongreject_dataset.csv",),
        lambda rows: [Item(row["forbidden_prompt"], row["category"]) for row in rows],
        "https://github.com/alexandrasouly/strongreject (strongreject_dataset)",
        "walledai/StrongREJECT:train",
    ),
    citation="Souly et al. 2024, arXiv 2402.10260",
    licence="MIT",
)
