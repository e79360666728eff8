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
"""A page has room for so many lines, whatever its size."""

_FONT_SHARE = 0.72
_MARGIN_SHARE = 0.02

Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class PageStyle:
    """How a page looks. Lengths are pixels of a square page of `side`."""

    side: int = 320
    ink: Colour = BLACK
    paper: Colour = WHITE
    font_size: float | None = None  # None: what fills the line height well
    left: int | None = None
    top: int = 0

    @property
    def line_height(self) -> float:
        return self.side / LINES

    @property
    def size(self) -> float:
        return self.line_height * _FONT_SHARE if self.font_size is None else self.font_size

    @property
    def margin(self) -> int:
        return round(self.side * _MARGIN_SHARE) if self.left is None else self.left


@dataclass(frozen=True)
class Word:
    """A word on the page: its place in the text, its line, and where it begins in that line, in pixels."""

    start: int
    text: str
    line: int
    x: float


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


def lay_out(text: str, style: PageStyle) -> list[Word]:
    """Where every word of `text` stands; a newline begins a new line.

    Raises:
        InputError: the text does not fit on the page, or has nothing to draw.
    """
    font, words, line, x = page_font(style.size), list[Word](), 0, float(style.margin)
    space = font.getlength(" ")
    for found in re.finditer(r"\n|[^\s]+", text):
        if found[0] == "\n":
            line, x = line + 1, float(style.margin)
            continue
        wide = font.getlength(found[0])
        if x > style.margin and x + wide > style.side - _MARGIN_SHARE * style.side:
            line, x = line + 1, float(style.margin)
        words.append(Word(found.start(), found[0], line, x))
        x += wide + space
    if not words:
        raise InputError("There is no text to draw into a picture.")
    if words[-1].line >= LINES:
        raise InputError(
            f"The text takes {words[-1].line + 1} lines and a page has {LINES}: {text[:60]!r}…. Shorten it."
        )
    return words


def fits(text: str, style: PageStyle | None = None) -> bool:
    """Whether a page has room for the text, every word within its width."""
    style = style or PageStyle()
    try:
        words = lay_out(text, style)
    except InputError:
        return False
    font = page_font(style.size)
    return all(word.x + font.getlength(word.text) <= style.side for word in words)


def draw_text(text: str, style: PageStyle | None = None) -> Image:
    """A square page with the text on it.

    Raises:
        InputError: see `lay_out`.
        MissingExtraError: without Pillow.
    """
    style = style or PageStyle()
    images, drawing, _ = require_pillow()
    page: Image = images.new("RGB", (style.side, style.side), style.paper)
    pen, font = drawing.Draw(page), page_font(style.size)
    for word in lay_out(text, style):
        y = style.top + (word.line + 0.5) * style.line_height
        pen.text((word.x, y), word.text, fill=style.ink, font=font, anchor="lm")
    return page
