"""Prompts with images: what a user writes, with the pictures that go before it.

A *prompt* is a text, or an `ImagePrompt`. A picture is kept as the bytes of its file, so that a prompt can be
compared, hashed and stored; `encoding.py` hands the pixels to a processor.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from inferaligner.errors import InputError, MissingExtraError
from inferaligner.storage.paths import expanded

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_FILE = 20_000_000
"""Bytes of a picture's file."""

LARGEST_PICTURE = 40_000_000
"""Pixels. A small file can hold a picture that fills the memory."""


def require_pillow() -> Any:
    """Pillow's modules `Image`, `ImageDraw` and `ImageFont`.

    Raises:
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise MissingExtraError(
            "Pictures need Pillow, which is not installed. Install it with: "
            "pip install 'inferaligner[vision]'"
        ) from None
    return Image, ImageDraw, ImageFont


@dataclass(frozen=True)
class Picture:
    """The bytes of an image file. Make one with `picture_from`, which checks them."""

    data: bytes

    @property
    def digest(self) -> str:
        """SHA-256 of the file, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    def pixels(self) -> Image:
        """The picture as an RGB image; transparent parts become white."""
        images, _, _ = require_pillow()
        with images.open(io.BytesIO(self.data)) as opened:
            if opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info:
                opened = opened.convert("RGBA")
                ground = images.new("RGBA", opened.size, (255, 255, 255, 255))
                opened = images.alpha_composite(ground, opened)
            rgb: Image = opened.convert("RGB")
        return rgb

    def __repr__(self) -> str:
        return f"Picture({len(self.data)} bytes, {self.digest[:12]})"


@dataclass(frozen=True)
class ImagePrompt:
    """A text with the pictures that stand before it, in their order."""

    text: str
    pictures: tuple[Picture, ...]

    def __post_init__(self) -> None:
        if not self.pictures:
            raise InputError("An ImagePrompt has no picture; give at least one, or give the text alone.")

    def with_text(self, text: str) -> ImagePrompt:
        """The same pictures with another text."""
        return ImagePrompt(text, self.pictures)


Prompt: TypeAlias = "str | ImagePrompt"


def text_of(prompt: Prompt) -> str:
    """The text of a prompt, without its pictures."""
    return prompt if isinstance(prompt, str) else prompt.text


def pictures_of(prompt: Prompt) -> tuple[Picture, ...]:
    """The pictures of a prompt; empty for a text."""
    return () if isinstance(prompt, str) else prompt.pictures


def with_text(prompt: Prompt, text: str) -> Prompt:
    """The prompt with another text; its pictures stay."""
    return text if isinstance(prompt, str) else prompt.with_text(text)


def key_of(prompt: Prompt) -> str:
    """A text that differs between different prompts, pictures included; for a text, the text itself."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join([*(f"image {picture.digest}" for picture in prompt.pictures), prompt.text])


def prompt_fields(prompt: Prompt) -> dict[str, Any]:
    """The fields of a prompt in a row of results: `prompt`, and `images` with the digests of its pictures."""
    digests = [picture.digest for picture in pictures_of(prompt)]
    return {"prompt": text_of(prompt), **({"images": digests} if digests else {})}


def picture_from(source: str | os.PathLike[str] | bytes | Image, *, folder: Path | None = None) -> Picture:
    """Reads a picture and checks that it is an image.

    Args:
        source: A path, a `data:` URL, the bytes of a file, or a Pillow image.
        folder: The folder that a relative path starts from; by default the current one.

    Raises:
        InputError: The file does not exist, is too large, or is not an image that Pillow can read.
        MissingExtraError: Pillow is not installed.

    Example:
        ImagePrompt("What is in this picture?", (picture_from("photo.png"),))
    """
    if isinstance(source, bytes):
        return _checked(source, "the picture")
    if isinstance(source, str) and source.startswith("data:"):
        return picture_from_data_url(source)
    if isinstance(source, (str, os.PathLike)):
        return _from_file(source, folder)
    buffer = io.BytesIO()
    source.save(buffer, format="PNG")
    return Picture(buffer.getvalue())


def picture_from_data_url(url: str) -> Picture:
    """Reads a picture from `data:image/...;base64,...`; raises the errors of `picture_from`."""
    head, comma, body = url.partition(",")
    if not comma or not head.startswith("data:image/") or not head.endswith(";base64"):
        raise InputError(f"{url[:40]!r}… is not an image's data URL; expected data:image/png;base64,….")
    if len(body) * 3 // 4 > LARGEST_FILE + 3:
        raise InputError(
            f"The data URL holds {len(body) * 3 // 4} bytes; expected at most {LARGEST_FILE}. Reduce it."
        )
    try:
        data = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"The data URL of an image is not base64 ({error}).") from None
    return _checked(data, "the data URL")


def _from_file(source: str | os.PathLike[str], folder: Path | None) -> Picture:
    text = os.fspath(source)
    if text.startswith(("http://", "https://")):
        raise InputError(
            f"{text[:80]} is on the network; expected a file on this machine or a data URL. Download it and "
            "give the file."
        )
    try:
        path = expanded(text)
        path = path if folder is None or path.is_absolute() else folder / path
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(
                f"The image {path} has {path.stat().st_size} bytes; expected at most {LARGEST_FILE}. "
                "Reduce it."
            )
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"The image {text[:200]} cannot be read ({reason}); check its path.") from None
    return _checked(data, f"the image {path}")


def _checked(data: bytes, what: str) -> Picture:
    images, _, _ = require_pillow()
    if len(data) > LARGEST_FILE:
        raise InputError(
            f"{what.capitalize()} has {len(data)} bytes; expected at most {LARGEST_FILE}. Reduce it."
        )
    try:
        with warnings.catch_warnings():
            # Pillow warns about large pictures; this check refuses them.
            warnings.simplefilter("ignore", images.DecompressionBombWarning)
            with images.open(io.BytesIO(data)) as opened:
                wide, high = opened.size
                if wide * high > LARGEST_PICTURE:
                    raise InputError(
                        f"{what.capitalize()} has {wide} × {high} pixels; expected at most {LARGEST_PICTURE} "
                        "in all. Reduce it."
                    )
                opened.load()
    except InputError:
        raise
    except Exception as error:  # Pillow's readers raise many types of error for a broken file
        raise InputError(
            f"{what.capitalize()} is not a readable image ({type(error).__name__}); "
            "expected PNG, JPEG, WebP or GIF."
        ) from None
    return Picture(data)
