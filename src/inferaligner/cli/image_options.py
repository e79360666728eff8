"""The option `--image`: images beside a prompt, as files or data URLs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from inferaligner.prompts.images import ImagePrompt, Prompt, picture_from

ImageFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="An image that goes before the prompt, for a vision-language model. May be repeated.",
    ),
]


def with_images(text: str, images: Sequence[str]) -> Prompt:
    """The prompt with its images, if any.

    Raises:
        InputError: An image cannot be read.
    """
    return ImagePrompt(text, tuple(map(picture_from, images))) if images else text
