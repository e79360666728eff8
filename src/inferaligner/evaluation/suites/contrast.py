"""The test part of the shipped contrast set (docs/contrast-set.md), as text and as pictures.

No gate of this package is fitted on the test part.
"""

from __future__ import annotations

from collections.abc import Callable

from inferaligner.evaluation.suites.suite import Item, Kind, Shipped, Suite
from inferaligner.prompts.contrast import ContrastPrompt, load_contrast_set
from inferaligner.prompts.picture_styles import STYLES, render

Choice = Callable[[ContrastPrompt], bool]


def texts(chosen: Choice) -> list[Item]:
    """The chosen prompts of the test part, with their category as the domain."""
    return [Item(p.text, p.category) for p in load_contrast_set().part("test") if chosen(p)]


def wrapped() -> list[Item]:
    """Every harmful request of the test part in every wrapper of the test part; no other part has those."""
    contrast = load_contrast_set()
    requests = [p.text for p in contrast.part("test", wrapped=False) if p.harmful]
    return [
        Item(wrapper.wrap(request), wrapper.kind)
        for wrapper in contrast.wrappers_of("test")
        for request in requests
    ]


def pictures(chosen: Choice) -> list[Item]:
    """The chosen prompts in every style of picture that can hold them, with the style as the domain."""
    prompts = [p.text for p in load_contrast_set().part("test", wrapped=False) if chosen(p)]
    drawn = [(style, render(style, text)) for text in prompts for style in STYLES]
    return [Item(prompt, style) for style, prompt in drawn if prompt is not None]


def _suite(name: str, title: str, kind: Kind, make: Callable[[], list[Item]]) -> Suite:
    citation = "The contrast set of inferaligner, test part (docs/contrast-set.md)."
    return Suite(name, title, kind, Shipped(make), citation=citation, licence="Apache-2.0")


def _benign(prompt: ContrastPrompt) -> bool:
    return prompt.kind == "benign" and prompt.category != "lookalike"


def _twin(prompt: ContrastPrompt) -> bool:
    return not prompt.harmful and prompt.kind == "plain"


def _looks_harmful(prompt: ContrastPrompt) -> bool:
    return _twin(prompt) or (prompt.kind == "benign" and prompt.category == "lookalike")


HARMFUL = _suite(
    "contrast-harmful",
    "Harmful requests",
    "harmful",
    lambda: texts(lambda prompt: prompt.harmful and prompt.kind == "plain"),
)
JAILBREAK = _suite("contrast-jailbreak", "Harmful requests inside wrappers", "jailbreak", wrapped)
OVER_REFUSAL = _suite(
    "contrast-over-refusal",
    "Harmless prompts that look harmful",
    "over-refusal",
    lambda: texts(_looks_harmful),
)
BENIGN = _suite("contrast-benign", "Ordinary prompts", "benign", lambda: texts(_benign))
PICTURE_ATTACK = _suite(
    "contrast-picture-attack",
    "Harmful requests in pictures",
    "jailbreak",
    lambda: pictures(lambda prompt: prompt.harmful),
)
# The twins have the same pictures as the attacks: the style of a picture must be no signal.
PICTURE_TWINS = _suite(
    "contrast-picture-twins", "Harmless twins in pictures", "over-refusal", lambda: pictures(_twin)
)
PICTURE_BENIGN = _suite(
    "contrast-picture-benign", "Ordinary prompts in pictures", "benign", lambda: pictures(_benign)
)
