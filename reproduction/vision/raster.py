"""Text drawn into pictures on a raster, as on a typewriter: every character in a cell of its own.

The small LLaVA can read nothing else: its vision tower has 4 million parameters and its patches are the
squares of the raster, so a word has to look the same wherever it stands. The figures of `docs/vision.md` were
measured on pages drawn in this way; the package itself draws text as Pillow does (`prompts/typography.py`).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inferaligner.errors import InputError
from inferaligner.prompts.images import require_pillow

if TYPE_CHECKING:
    from PIL.Image import Image

LINES = 8
"""Lines of a page, and tab stops of a line: a raster of squares."""

CELLS_PER_STOP = 3
"""Characters from one tab stop to the next. A word begins at a tab stop."""

CELLS = LINES * CELLS_PER_STOP
"""Characters of a line."""

_FONT_SHARE = 0.56  # of the line height: wide letters come close and do not overlap

Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)
WHITE: Colour = (255, 255, 255)


@dataclass(frozen=True)
class PageStyle:
    """How a page looks: `side`, and `shift` to the right and down, in pixels."""

    side: int = 320
    ink: Colour = BLACK
    paper: Colour = WHITE
    shift: tuple[int, int] = (0, 0)

    @property
    def square(self) -> float:
        """Side of a square of the raster in pixels: the height of a line, the distance of tab stops."""
        return self.side / LINES


@dataclass(frozen=True)
class Word:
    """A word on the page: its offset in the text, its line, and the cell of that line in which it begins."""

    start: int
    text: str
    line: int
    cell: int


@functools.lru_cache(maxsize=64)
def page_font(size: float) -> Any:
    """Pillow's own font at a size in pixels."""
    _, _, fonts = require_pillow()
    return fonts.load_default(size)


def lay_out(text: str) -> list[Word]:
    """The line and the first cell of every word of `text`; a newline begins a new line.

    Raises:
        InputError: the text does not fit on the page, or has nothing to draw.
    """
    words, line, cell = list[Word](), 0, 0
    for match in re.finditer(r"\n|[^\s]+", text):
        if match[0] == "\n":
            line, cell = line + 1, 0
            continue
        if cell > 0 and cell + len(match[0]) > CELLS:
            line, cell = line + 1, 0
        words.append(Word(match.start(), match[0], line, cell))
        taken = cell + len(match[0]) + 1  # a blank at least before the next word
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
