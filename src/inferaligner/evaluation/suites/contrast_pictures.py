"""The test part of the contrast set in pictures, in every style that a request can be drawn in."""

from __future__ import annotations

from collections.abc import Callable

from inferaligner.evaluation.suites.suite import Item
from inferaligner.prompts.contrast import ContrastPrompt, load_contrast_set
from inferaligner.prompts.picture_styles import STYLES, render


def in_pictures(wanted: Callable[[ContrastPrompt], bool]) -> list[Item]:
    """The unwrapped prompts of the test part that are wanted, the style of the picture as the domain."""
    asked = [p.text for p in load_contrast_set().part("test", wrapped=False) if wanted(p)]
    shown = [(style, render(style, text)) for text in asked for style in STYLES]
    return [Item(prompt, style) for style, prompt in shown if prompt is not None]
