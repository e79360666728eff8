from __future__ import annotations

import numpy as np
import pytest

from inferaligner.errors import InputError

pytest.importorskip("PIL")

from inferaligner.prompts.typography import SIDE, draw_text, fits


def inked_rows(text: str) -> np.ndarray:
    """Numbers of the pixel rows in which something is drawn."""
    return np.flatnonzero((np.asarray(draw_text(text).convert("L")) < 128).any(axis=1))


def test_a_page_is_white_with_black_text_inside_its_margin() -> None:
    pixels = np.asarray(draw_text("Steps to bake bread.\n1.\n2.\n3."))
    assert pixels.shape == (SIDE, SIDE, 3)
    dark = np.argwhere(pixels[..., 0] < 128)
    assert pixels.min() < 30 and len(dark) < pixels[..., 0].size / 10
    edge = np.concatenate(
        [pixels[:8].ravel(), pixels[-8:].ravel(), pixels[:, :8].ravel(), pixels[:, -8:].ravel()]
    )
    assert (edge == 255).all()


def test_long_lines_are_broken_between_words_and_newlines_are_kept() -> None:
    one = inked_rows("flour flour flour")
    assert inked_rows("flour " * 12).max() > one.max()
    assert inked_rows("flour\nflour").max() > one.max()
    assert (np.asarray(draw_text("a  b")) == np.asarray(draw_text("a b"))).all()


def test_the_same_text_is_the_same_picture() -> None:
    assert (np.asarray(draw_text("Mix and wait.")) == np.asarray(draw_text("Mix and wait."))).all()
    assert (np.asarray(draw_text("Mix and wait.")) != np.asarray(draw_text("Mix and bake."))).any()


@pytest.mark.parametrize("text", ["one\n" * 40, "a" * 200, "word " * 200])
def test_a_text_without_room_is_refused(text: str) -> None:
    assert not fits(text)
    with pytest.raises(InputError, match=r"does not fit on a page of 336 pixels\. Shorten it"):
        draw_text(text)


def test_an_empty_text_is_refused() -> None:
    assert fits("one\ntwo")
    with pytest.raises(InputError, match="no text"):
        draw_text("  \n ")
