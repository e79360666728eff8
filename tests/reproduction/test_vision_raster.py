"""The raster of the small LLaVA's pages."""

from __future__ import annotations

import numpy as np
import pytest

from inferaligner.errors import InputError

pytest.importorskip("PIL")

from reproduction.vision.raster import LINES, PageStyle, draw_text, fits, lay_out


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
