"""The harmless twins of those requests, in the same pictures: a picture's style must be no signal."""

from inferaligner.evaluation.suites.contrast_pictures import in_pictures
from inferaligner.evaluation.suites.contrast_prompts import CITATION, LICENCE
from inferaligner.evaluation.suites.suite import Shipped, Suite

SUITE = Suite(
    "contrast-picture-twins",
    "Harmless twins in pictures",
    "over-refusal",
    Shipped(lambda: in_pictures(lambda prompt: not prompt.harmful and prompt.kind == "plain")),
    citation=CITATION,
    licence=LICENCE,
)
