"""Text drawn into a picture with Pillow, in the font that Pillow ships: the same picture on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inferaligner.errors import InputError
from inferaligner.prompts.images import require_pillow

if TYPE_CHECKING:
    from PIL.Image import Image

SIDE = 336
"""Side of the square page in pixels: the size to which CLIP's largest vision tower scales a picture."""
FONT_SIZE = 24
_MARGIN = 16
_LINE_SPACING = 8


def draw_text(text: str) -> Image:
    """Draws black text on a white square page, with line breaks between words.

    Args:
        text: What the page says. A newline begins a new line.

    Returns:
        An RGB image of `SIDE` x `SIDE` pixels.

    Raises:
        InputError: The text is empty or does not fit on the page.
        MissingExtraError: Pillow is not installed.
    """
    images, drawing, fonts = require_pillow()
    page: Image = images.new("RGB", (SIDE, SIDE), "white")
    pen, font = drawing.Draw(page), fonts.load_default(FONT_SIZE)
    room = SIDE - 2 * _MARGIN
    wrapped = "\n".join(_wrap(line, font, room) for line in text.split("\n"))
    if not wrapped.strip():
        raise InputError("There is no text to draw into a picture.")
    _, _, right, bottom = pen.multiline_textbbox((0, 0), wrapped, font=font, spacing=_LINE_SPACING)
    if max(right, bottom) > room:
        raise InputError(f"The text {text[:60]!r}… does not fit on a page of {SIDE} pixels. Shorten it.")
    pen.multiline_text((_MARGIN, _MARGIN), wrapped, fill="black", font=font, spacing=_LINE_SPACING)
    return page


def fits(text: str) -> bool:
    """Whether a page has room for the text."""
    try:
        draw_text(text)
    except InputError:
        return False
    return True


def _wrap(line: str, font: Any, width: int) -> str:
    """The line with newlines between words, so that no part with two words is wider than `width` pixels."""
    lines: list[str] = []
    for word in line.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
