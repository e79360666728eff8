"""Around the application: API keys, size limits, counting. Plain ASGI, so that streams pass untouched."""

from __future__ import annotations

import json
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferaligner.server.errors import ApiError
from inferaligner.server.keys import ApiKeys
from inferaligner.server.metrics import ServerMetrics


class Gatekeeper:
    """Checks the key and the size of the body before anything is parsed, and counts what is answered."""

    def __init__(
        self, app: ASGIApp, *, keys: ApiKeys, metrics: ServerMetrics, max_body_bytes: int, routes: set[str]
    ) -> None:
        self._app = app
        self._keys = keys
        self._metrics = metrics
        self._limit = max_body_bytes
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        seen: MutableMapping[str, Any] = {"status": 499, "first": None}

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen["status"] = message["status"]
            elif seen["first"] is None:
                seen["first"] = time.perf_counter() - began
            await send(message)

        try:
            headers = {name.lower(): value for name, value in scope["headers"]}
            authorization = headers.get(b"authorization")
            self._keys.check(
                scope["path"], None if authorization is None else authorization.decode("latin-1")
            )
            length = headers.get(b"content-length", b"0")
            if length.isdigit() and int(length) > self._limit:
                raise self._too_large()
            await self._app(scope, await self._whole(receive), counting)
        except ApiError as error:
            await send_error(error, counting)
        finally:
            # Paths that do not exist share one name: nobody can make the page grow.
            route = scope["path"] if scope["path"] in self._routes else "other"
            self._metrics.answered(route, seen["status"], seen["first"], time.perf_counter() - began)

    async def _whole(self, receive: Receive) -> Receive:
        """Reads the body here, where its size can be refused, and gives it on in one piece."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client is gone
                return receive
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit:
                raise self._too_large()
        told = False

        async def replayed() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return replayed

    def _too_large(self) -> ApiError:
        return ApiError(
            f"The request is larger than {self._limit} bytes, which is the most that this server reads.",
            status=413,
        )


async def send_error(error: ApiError, send: Send) -> None:
    """An error as a whole answer."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
