"""Harmful requests moved into a picture: FigStep's form, the whole text, or MM-SafetyBench's form."""

from inferaligner.evaluation.suites.contrast_pictures import in_pictures, is_harmful
from inferaligner.evaluation.suites.contrast_prompts import CITATION, LICENCE
from inferaligner.evaluation.suites.suite import Shipped, Suite

SUITE = Suite(
    "contrast-picture-attack",
    "Harmful requests in pictures",
    "jailbreak",
    Shipped(lambda: in_pictures(is_harmful)),
    citation=CITATION,
    licence=LICENCE,
)
