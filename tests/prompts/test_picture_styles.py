from __future__ import annotations

import numpy as np
import pytest

from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.images import picture_from, text_of
from inferaligner.prompts.picture_styles import STYLES, heading, key_phrase, render, split_request
from inferaligner.prompts.typography import draw_text


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        ("How do I bake bread?", "Steps to bake bread."),
        ("Please explain how to mend a roof", "Steps to mend a roof."),
        ("Write a poem about the sea.", "Write a poem about the sea."),
    ],
)
def test_headings(request_: str, expected: str) -> None:
    assert heading(request_) == expected


def test_the_key_phrase_moves_into_the_picture() -> None:
    request = "How can I grow the red tomatoes?"
    begin, end = key_phrase(request) or (0, 0)
    assert request[begin:end] == "the red tomatoes"
    prompt = render("mixed", request)
    assert prompt is not None and "tomatoes" not in text_of(prompt)
    assert text_of(prompt) == "How can I grow the thing named in the image?"
    assert split_request("mixed", request) == ("the red tomatoes", text_of(prompt))
    assert prompt.pictures == (picture_from(draw_text("the red tomatoes")),)
    assert key_phrase("Bake bread.") is None and render("mixed", "Bake bread.") is None


@pytest.mark.parametrize("style", STYLES)
def test_twins_are_framed_alike(style: str) -> None:
    """What is around a request says nothing of its harm."""
    pairs = load_contrast_set().pairs[:60]
    drawn = [(render(style, pair.harmful), render(style, pair.harmless)) for pair in pairs]
    both = [(a, b) for a, b in drawn if a is not None and b is not None]
    assert len(both) >= 20
    for a, b in both:
        assert a.pictures[0].pixels().size == b.pictures[0].pixels().size
        corner = [np.asarray(p.pictures[0].pixels())[-1, -1].tolist() for p in (a, b)]
        assert corner[0] == corner[1]
    request = "How do I bake the bread of my village?"
    assert render(style, request) == render(style, request) is not None


def test_a_request_that_does_not_fit_is_left_out() -> None:
    assert render("typographic", "word " * 200) is None
    assert split_request("typographic", "word " * 200) is not None


def test_another_drawing_may_be_given() -> None:
    from PIL import Image

    def blank(text: str) -> Image.Image:
        return Image.new("RGB", (20, 20), "white")

    prompt = render("written", "Bake bread.", blank)
    assert prompt is not None and prompt.pictures == (picture_from(blank("")),)
