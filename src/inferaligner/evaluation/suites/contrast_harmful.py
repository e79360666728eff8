"""Harmful requests of the contrast set, as they are."""

from inferaligner.evaluation.suites.contrast_prompts import CITATION, LICENCE, of_test
from inferaligner.evaluation.suites.suite import Shipped, Suite

SUITE = Suite(
    "contrast-harmful",
    "Harmful requests",
    "harmful",
    Shipped(lambda: of_test(lambda prompt: prompt.harmful and prompt.kind == "plain")),
    citation=CITATION,
    licence=LICENCE,
)
