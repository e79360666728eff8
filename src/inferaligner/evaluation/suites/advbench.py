"""AdvBench harmful behaviours."""

from inferaligner.evaluation.suites.published import Published
from inferaligner.evaluation.suites.suite import Item, Suite

ADVBENCH = Suite(
    "advbench",
    "AdvBench harmful behaviours",
    "harmful",
    Published(
        ("advbench/advbench.csv",),
        lambda rows: [Item(row["goal"]) for row in rows],
        "https://github.com/llm-attacks/llm-attacks (data/advbench/harmful_behaviors.csv)",
        "walledai/AdvBench:train",
    ),
    citation="Zou et al. 2023, arXiv 2307.15043",
    licence="MIT",
)
