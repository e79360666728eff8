"""HarmBench; the context of a contextual behaviour stands before it in the prompt."""

from collections.abc import Sequence

from inferaligner.evaluation.suites.published import Published, Row
from inferaligner.evaluation.suites.suite import Item, Suite


def _read(rows: Sequence[Row]) -> list[Item]:
    return [
        Item(
            f"{row['ContextString']}\n\n---\n\n{row['Behavior']}"
            if row["ContextString"]
            else row["Behavior"],
            row["SemanticCategory"],
            name=row["BehaviorID"],
        )
        for row in rows
    ]


HARMBENCH = Suite(
    "harmbench",
    "HarmBench, text test set",
    "harmful",
    Published(
        ("harmbench/harmbench_behaviors_text_test.csv",),
        _read,
        "https://github.com/centerforaisafety/HarmBench (data/behavior_datasets)",
    ),
    citation="Mazeika et al. 2024, arXiv 2402.04249",
    licence="MIT",
)
