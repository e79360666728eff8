"""Harmless prompts that look harmful: twins of the harmful requests, and lookalikes."""

from inferaligner.evaluation.suites.contrast_prompts import CITATION, LICENCE, of_test
from inferaligner.evaluation.suites.suite import Shipped, Suite

SUITE = Suite(
    "contrast-over-refusal",
    "Harmless prompts that look harmful",
    "over-refusal",
    Shipped(
        lambda: of_test(
            lambda p: not p.harmful and (p.kind == "plain" or (p.kind, p.category) == ("benign", "lookalike"))
        )
    ),
    citation=CITATION,
    licence=LICENCE,
)
