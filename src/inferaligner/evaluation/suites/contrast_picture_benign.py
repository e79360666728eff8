"""Ordinary prompts in pictures: every answer should be the bare model's own."""

from inferaligner.evaluation.suites.contrast_pictures import in_pictures, is_ordinary
from inferaligner.evaluation.suites.contrast_prompts import CITATION, LICENCE
from inferaligner.evaluation.suites.suite import Shipped, Suite

SUITE = Suite(
    "contrast-picture-benign",
    "Ordinary prompts in pictures",
    "benign",
    Shipped(lambda: in_pictures(is_ordinary)),
    citation=CITATION,
    licence=LICENCE,
)
