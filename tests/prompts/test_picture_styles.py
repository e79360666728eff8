from __future__ import annotations

import numpy as np
import pytest

from inferaligner.errors import InputError
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.images import text_of
from inferaligner.prompts.picture_styles import STYLES, heading, key_phrase, page_text, render
from inferaligner.prompts.typography import LINES, PageStyle, draw_text, fits, lay_out


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
    assert page_text("mixed", request) == "the red tomatoes"
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
    assert render("typographic", "word " * 200) is page_text("typographic", "word " * 200) is None


def test_words_are_where_they_are_said_to_be() -> None:
    words = lay_out("Mix flour and water.\nWait")
    assert [word.text for word in words] == ["Mix", "flour", "and", "water.", "Wait"]
    assert [word.cell for word in words] == [0, 6, 12, 18, 0]  # at tab stops, with a blank between
    assert (words[-1].line, words[0].line) == (1, 0)
    style = PageStyle(320)
    inked = np.argwhere(np.asarray(draw_text("a bc", style).convert("L")) < 128)
    squares = {(int(y // style.square), int(x // style.square)) for y, x in inked}
    assert squares == {(0, 0), (0, 1)}


def test_a_word_looks_the_same_everywhere() -> None:
    # Narrow letters: a wide one reaches over the edge of its square, and the page has an edge of its own.
    style = PageStyle(320)
    page = np.asarray(draw_text("fill fill\nfill", style))
    side = int(style.square)
    there = [page[:side, : 2 * side], page[:side, 2 * side : 4 * side], page[side : 2 * side, : 2 * side]]
    assert (there[0] < 128).any()
    assert (there[0] == there[1]).all() and (there[0] == there[2]).all()


def test_pages_have_an_end() -> None:
    assert fits("one\n" * (LINES - 1) + "one") and not fits("one\n" * LINES + "one")
    with pytest.raises(InputError, match="lines and a page has"):
        draw_text("one\n" * LINES + "one")
    with pytest.raises(InputError, match="no text"):
        draw_text("  ")
    with pytest.raises(InputError, match="longer than a line"):
        draw_text("a" * 100)
