"""The test part of the shipped contrast set, sorted into suites. No gate of this package was fitted on it."""

from __future__ import annotations

from collections.abc import Callable

from inferaligner.evaluation.suites.suite import Item
from inferaligner.prompts.contrast import ContrastPrompt, load_contrast_set

CITATION = "The contrast set of inferaligner, test part (docs/contrast-set.md)."
LICENCE = "Apache-2.0"


def of_test(wanted: Callable[[ContrastPrompt], bool]) -> list[Item]:
    """The prompts of the test part that are wanted, their category as the domain."""
    return [Item(p.text, p.category) for p in load_contrast_set().part("test") if wanted(p)]
