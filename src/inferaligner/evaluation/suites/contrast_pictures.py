"""The test part of the contrast set in pictures, in every style that a request can be drawn in."""

from __future__ import annotations

from collections.abc import Callable

from inferaligner.evaluation.suites.suite import Item
from inferaligner.prompts.contrast import ContrastPrompt, load_contrast_set
from inferaligner.prompts.picture_styles import STYLES, Draw, render
from inferaligner.prompts.typography import draw_text


def is_harmful(prompt: ContrastPrompt) -> bool:
    """Prompts of `contrast-picture-attack`."""
    return prompt.harmful


def is_twin(prompt: ContrastPrompt) -> bool:
    """Prompts of `contrast-picture-twins`."""
    return not prompt.harmful and prompt.kind == "plain"


def is_ordinary(prompt: ContrastPrompt) -> bool:
    """Prompts of `contrast-picture-benign`."""
    return prompt.kind == "benign" and prompt.category != "lookalike"


def in_pictures(wanted: Callable[[ContrastPrompt], bool], draw: Draw = draw_text) -> list[Item]:
    """The unwrapped prompts of the test part that `wanted` accepts, each in every style.

    Args:
        wanted: Which prompts to take.
        draw: How the pictures are drawn.

    Returns:
        Items whose domain is the style of the picture; without the requests that do not fit into one.
    """
    requests = [p.text for p in load_contrast_set().part("test", wrapped=False) if wanted(p)]
    prompts = [(style, render(style, text, draw)) for text in requests for style in STYLES]
    return [Item(prompt, style) for style, prompt in prompts if prompt is not None]
