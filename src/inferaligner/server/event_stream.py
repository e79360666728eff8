"""Server-sent events: the body of a streamed answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from inferaligner.server.errors import ApiError
from inferaligner.storage.json_io import plain


class EventStream(StreamingResponse):
    """A response of media type text/event-stream: one JSON object per event, then `[DONE]`."""

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncIterator[Mapping[str, Any]],
        *,
        headers: Mapping[str, str],
        on_close: Callable[[], None],
    ) -> None:
        """Makes the response.

        Args:
            chunks: the events, as JSON objects.
            headers: of the response, beside those that keep proxies from holding events back.
            on_close: called once when the stream has ended, also when the client went away.
        """
        super().__init__(
            _events(chunks), headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers}
        )
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends events until the chunks end or the client disconnects."""
        try:
            await super().__call__(scope, receive, send)
        except ClientDisconnect:
            pass
        finally:
            self._on_close()


async def _events(chunks: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[bytes]:
    try:
        async for chunk in chunks:
            yield _event(chunk)
    except ApiError as error:  # the status 200 is sent already; OpenAI's clients raise on this event
        yield _event(error.body())
    yield b"data: [DONE]\n\n"


def _event(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(plain(dict(value)), ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode("utf-8", "replace") + b"\n\n"
