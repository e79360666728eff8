"""Harmful requests of the contrast set inside wrappers: role play, pretexts, "ignore the rules", everyday.

All wrappers of the test part are laid around all of its harmful requests; none is in another part.
"""

from inferaligner.evaluation.suites.contrast_prompts import CITATION, LICENCE
from inferaligner.evaluation.suites.suite import Item, Shipped, Suite
from inferaligner.prompts.contrast import load_contrast_set


def _crossed() -> list[Item]:
    contrast = load_contrast_set()
    asked = [p.text for p in contrast.part("test", wrapped=False) if p.harmful]
    return [
        Item(wrapper.wrap(prompt), wrapper.kind)
        for wrapper in contrast.wrappers_of("test")
        for prompt in asked
    ]


SUITE = Suite(
    "contrast-jailbreak",
    "Harmful requests inside wrappers",
    "jailbreak",
    Shipped(_crossed),
    citation=CITATION,
    licence=LICENCE,
)
