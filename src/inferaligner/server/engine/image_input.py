"""Conversations with images: from a client's messages to turns for the chat template, and pictures.

An image comes as a `data:` URL. The server fetches an image only from hosts that the operator has named
(`--image-host`): with arbitrary URLs a client could reach services inside the operator's network.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from inferaligner.errors import InferAlignerError
from inferaligner.prompts.images import LARGEST_FILE, Picture, picture_from, picture_from_data_url
from inferaligner.server.errors import ApiError
from inferaligner.server.schema import ImagePart, Message

MOST_IMAGES = 16
"""Highest number of images in one conversation."""

_SECONDS = 10.0


class ImageInput:
    """Reads the images of requests."""

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        """`hosts` are those that images may be fetched from, by https."""
        self._hosts = frozenset(host.lower() for host in hosts)

    def picture(self, url: str, place: str) -> Picture:
        """Reads the picture of a URL.

        Args:
            url: a `data:` URL, or an https URL of an allowed host.
            place: field of the request that holds the URL, for errors.

        Raises:
            ApiError: the URL is not allowed, or there is no usable picture behind it.
        """
        try:
            if url.startswith("data:"):
                return picture_from_data_url(url)
            return picture_from(self._fetched(url, place))
        except InferAlignerError as error:
            raise ApiError(str(error), param=place) from None

    def _fetched(self, url: str, place: str) -> bytes:
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "").lower()
        except ValueError:
            parts, host = urlsplit(""), ""
        if parts.scheme != "https" or host not in self._hosts:
            raise ApiError(
                "Images come as data URLs (data:image/png;base64,…). This server fetches none from "
                f"{host or 'there'}; its operator can name hosts with --image-host.",
                param=place,
                code="image_url_not_allowed",
            )
        try:
            with _opener.open(url, timeout=_SECONDS) as reply:
                data: bytes = reply.read(LARGEST_FILE + 1)
        except (OSError, ValueError, urllib.error.URLError) as error:
            raise ApiError(
                f"The image could not be fetched from {host} ({type(error).__name__}).", param=place
            ) from None
        return data


def turns_and_pictures(
    messages: Sequence[Message], images: ImageInput
) -> tuple[list[dict[str, Any]], list[Picture]]:
    """Splits messages into turns for the chat template and pictures.

    Returns:
        The turns, with a placeholder for each picture, and the pictures in the same order.

    Raises:
        ApiError: an image cannot be read, there are too many, or one is in a turn that is not the user's.
    """
    turns: list[dict[str, Any]] = []
    pictures: list[Picture] = []
    for number, message in enumerate(messages):
        content: Any = message.text
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, list) and any(isinstance(p, ImagePart) for p in message.content):
            if role != "user":
                raise ApiError("Only the user's turns may have images.", param=f"messages.{number}")
            content = []
            for at, part in enumerate(message.content):
                if isinstance(part, ImagePart):
                    place = f"messages.{number}.content.{at}.image_url"
                    if len(pictures) == MOST_IMAGES:
                        raise ApiError(f"There are more than {MOST_IMAGES} images.", param=place)
                    pictures.append(images.picture(part.image_url.url, place))
                    content.append({"type": "image"})
                else:
                    content.append({"type": "text", "text": part.text})
        turn = {"role": role, "content": content}
        # Under both names: some templates of reasoning models read one, some the other.
        if (reasoning := message.reasoning_content or message.reasoning) is not None:
            turn.update(reasoning_content=reasoning, reasoning=reasoning)
        turns.append(turn)
    return turns, pictures


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: an allowed host must not send the server to another one."""

    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)
