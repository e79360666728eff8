"""Server-sent events. A client that goes away ends the stream, and `on_close` is called in any case."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from inferaligner.server.errors import ApiError
from inferaligner.server.request_stream import gone
from inferaligner.storage.json_io import plain

_DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """An answer of media type text/event-stream, one JSON object an event, `[DONE]` as the last."""

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncIterator[Mapping[str, Any]],
        *,
        headers: Mapping[str, str],
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no", **headers})
        del self.headers["content-length"]
        self._chunks = chunks
        self._on_close = on_close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until the chunks or the client end."""
        writing = asyncio.ensure_future(self._write(send))
        watching = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait({writing, watching}, return_when=asyncio.FIRST_COMPLETED)
            if writing.done():
                writing.result()
        finally:
            for task in (writing, watching):
                task.cancel()
            await asyncio.gather(writing, watching, return_exceptions=True)
            self._on_close()

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            async for chunk in self._chunks:
                await send({"type": "http.response.body", "body": event(chunk), "more_body": True})
        except ApiError as error:  # the status is out already; OpenAI's clients raise on this
            await send({"type": "http.response.body", "body": event(error.body()), "more_body": True})
        await send({"type": "http.response.body", "body": _DONE, "more_body": False})


def event(value: Mapping[str, Any]) -> bytes:
    """One event."""
    text = json.dumps(plain(dict(value)), ensure_ascii=False, separators=(",", ":"))
    return b"data: " + text.encode("utf-8", "replace") + b"\n\n"
