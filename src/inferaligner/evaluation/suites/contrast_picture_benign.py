"""Ordinary prompts in pictures, of which every answer should be the bare model's own."""

from inferaligner.evaluation.suites.contrast_pictures import in_pictures
from inferaligner.evaluation.suites.contrast_prompts import CITATION, LICENCE
from inferaligner.evaluation.suites.suite import Shipped, Suite

SUITE = Suite(
    "contrast-picture-benign",
    "Ordinary prompts in pictures",
    "benign",
    Shipped(lambda: in_pictures(lambda p: p.kind == "benign" and p.category != "lookalike")),
    citation=CITATION,
    licence=LICENCE,
)
