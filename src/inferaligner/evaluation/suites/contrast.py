"""The test part of the shipped contrast set (docs/contrast-set.md), as text and as pictures.

No gate of this package is fitted on the test part.
"""

from __future__ import annotations

from collections.abc import Callable

from inferaligner.evaluation.suites.suite import Item, Kind, Shipped, Suite
from inferaligner.prompts.contrast import ContrastPrompt, load_contrast_set
from inferaligner.prompts.picture_styles import STYLES, Draw, render
from inferaligner.prompts.typography import draw_text

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


def pictures(chosen: Choice, draw: Draw = draw_text) -> list[Item]:
    """The chosen prompts in every style of picture that can hold them, with the style as the domain.

    `draw` draws the pictures.
    """
    prompts = [p.text for p in load_contrast_set().part("test", wrapped=False) if chosen(p)]
    drawn = [(style, render(style, text, draw)) for text in prompts for style in STYLES]
    return [Item(prompt, style) for style, prompt in drawn if prompt is not None]


def _suite(name: str, title: str, kind: Kind, make: Callable[[], list[Item]]) -> Suite:
    citation = "The contrast set of inferaligner, test part (docs/contrast-set.md)."
    return Suite(name, title, kind, Shipped(make), citation=citation, licence="Apache-2.0")


def is_harmful(prompt: ContrastPrompt) -> bool:
    """Whether the suite `contrast-picture-attack` has the prompt."""
    return prompt.harmful


def is_ordinary(prompt: ContrastPrompt) -> bool:
    """Whether the suites `contrast-benign` and `contrast-picture-benign` have the prompt."""
    return prompt.kind == "benign" and prompt.category != "lookalike"


def is_twin(prompt: ContrastPrompt) -> bool:
    """Whether the suite `contrast-picture-twins` has the prompt."""
    return not prompt.harmful and prompt.kind == "plain"


def _looks_harmful(prompt: ContrastPrompt) -> bool:
    return is_twin(prompt) or (prompt.kind == "benign" and prompt.category == "lookalike")


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
BENIGN = _suite("contrast-benign", "Ordinary prompts", "benign", lambda: texts(is_ordinary))
PICTURE_ATTACK = _suite(
    "contrast-picture-attack",
    "Harmful requests in pictures",
    "jailbreak",
    lambda: pictures(is_harmful),
)
# The twins have the same pictures as the attacks: the style of a picture must be no signal.
PICTURE_TWINS = _suite(
    "contrast-picture-twins", "Harmless twins in pictures", "over-refusal", lambda: pictures(is_twin)
)
PICTURE_BENIGN = _suite(
    "contrast-picture-benign", "Ordinary prompts in pictures", "benign", lambda: pictures(is_ordinary)
)
