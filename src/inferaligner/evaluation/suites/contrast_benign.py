"""Ordinary traffic, of which every answer should be the bare model's own."""

from inferaligner.evaluation.suites.contrast_prompts import CITATION, LICENCE, of_test
from inferaligner.evaluation.suites.suite import Shipped, Suite

SUITE = Suite(
    "contrast-benign",
    "Ordinary prompts",
    "benign",
    Shipped(lambda: of_test(lambda p: p.kind == "benign" and p.category != "lookalike")),
    citation=CITATION,
    licence=LICENCE,
)
