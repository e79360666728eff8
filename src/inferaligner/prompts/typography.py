"""Text and figures drawn into pictures, with Pillow and the font that it brings along.

The same picture comes out on every machine. A text is laid out in lines of words, and the layout can be had
by itself: where each word begins, in pixels.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferaligner.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

LINES = 8
"""A page has so many lines, and every line so many tab stops: a raster of squares."""

CELLS_PER_STOP = 3
"""Characters from one tab stop to the next. A word begins at a tab stop, and each character has a cell of its
own, as on a typewriter: a model whose patches are the raster's squares meets a word in one shape only."""

CELLS = LINES * CELLS_PER_STOP
"""Characters of a line."""

_FONT_SHARE = 0.56  # of the line height: wide letters come close to each other and do not cover each other

Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class PageStyle:
    """How a page looks. `side`, and the shift to the right and down, are in pixels."""

    side: int = 320
    ink: Colour = BLACK
    paper: Colour = WHITE
    shift: tuple[int, int] = (0, 0)

    @property
    def square(self) -> float:
        """Side of a square of the raster: the height of a line, and the way to the next tab stop."""
        return self.side / LINES


@dataclass(frozen=True)
class Word:
    """A word on the page: its place in the text, its line, and the cell in which it begins there."""

    start: int
    text: str
    line: int
    cell: int


def require_pillow() -> Any:
    """Pillow's `Image`, `ImageDraw` and `ImageFont`. Raises `MissingExtraError` without it."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtraError(
            "Pictures need Pillow, which is not installed. Install it with: "
            "pip install 'inferaligner[vision]'"
        ) from None
    return Image, ImageDraw, ImageFont


@functools.lru_cache(maxsize=64)
def page_font(size: float) -> Any:
    """Pillow's own font at a size in pixels."""
    _, _, fonts = require_pillow()
    return fonts.load_default(size)


def lay_out(text: str) -> list[Word]:
    """Where every word of `text` stands; a newline begins a new line.

    Raises:
        InputError: the text does not fit on the page, or has nothing to draw.
    """
    words, line, cell = list[Word](), 0, 0
    for found in re.finditer(r"\n|[^\s]+", text):
        if found[0] == "\n":
            line, cell = line + 1, 0
            continue
        if cell > 0 and cell + len(found[0]) > CELLS:
            line, cell = line + 1, 0
        words.append(Word(found.start(), found[0], line, cell))
        taken = cell + len(found[0]) + 1  # a blank at least before the next word
        cell = -(-taken // CELLS_PER_STOP) * CELLS_PER_STOP
    if not words:
        raise InputError("There is no text to draw into a picture.")
    longest = max(words, key=lambda word: len(word.text))
    if len(longest.text) > CELLS:
        raise InputError(f"The word {longest.text[:40]!r} is longer than a line of {CELLS} characters.")
    if words[-1].line >= LINES:
        raise InputError(
            f"The text takes {words[-1].line + 1} lines and a page has {LINES}: {text[:60]!r}…. Shorten it."
        )
    return words


def fits(text: str) -> bool:
    """Whether a page has room for the text."""
    try:
        lay_out(text)
    except InputError:
        return False
    return True


def draw_text(text: str, style: PageStyle | None = None) -> Image:
    """A square page with the text on it.

    Raises:
        InputError: see `lay_out`.
        MissingExtraError: without Pillow.
    """
    style = style or PageStyle()
    images, drawing, _ = require_pillow()
    page: Image = images.new("RGB", (style.side, style.side), style.paper)
    pen, font = drawing.Draw(page), page_font(style.square * _FONT_SHARE)
    right, down = style.shift
    for word in lay_out(text):
        y = down + (word.line + 0.5) * style.square
        for at, character in enumerate(word.text):
            x = right + (word.cell + at + 0.5) * style.square / CELLS_PER_STOP
            # Whole pixels, so that a letter is the same letter wherever it stands.
            pen.text((round(x), round(y)), character, fill=style.ink, font=font, anchor="mm")
    return page
