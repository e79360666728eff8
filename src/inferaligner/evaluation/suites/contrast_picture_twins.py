"""Harmless twins of the harmful requests, in the same styles of picture: a style must not open the gate."""

from inferaligner.evaluation.suites.contrast_pictures import in_pictures, is_twin
from inferaligner.evaluation.suites.contrast_prompts import CITATION, LICENCE
from inferaligner.evaluation.suites.suite import Shipped, Suite

SUITE = Suite(
    "contrast-picture-twins",
    "Harmless twins in pictures",
    "over-refusal",
    Shipped(lambda: in_pictures(is_twin)),
    citation=CITATION,
    licence=LICENCE,
)
