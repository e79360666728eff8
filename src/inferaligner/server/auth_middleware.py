"""ASGI middleware around the application: API keys, size limit, and counts of responses."""

from __future__ import annotations

import json
import time
from collections.abc import MutableMapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from inferaligner.server.errors import ApiError
from inferaligner.server.keys import ApiKeys
from inferaligner.server.metrics import ServerMetrics


class AuthMiddleware:
    """Checks the API key and the size of the body before anything is parsed, and counts responses.

    Plain ASGI, so that streams pass unchanged.
    """

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
        response: MutableMapping[str, Any] = {"status": 499, "first": None}

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                response["status"] = message["status"]
            elif response["first"] is None:
                response["first"] = time.perf_counter() - began
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
            # Unknown paths share one label, so that requests cannot make the metrics page grow.
            route = scope["path"] if scope["path"] in self._routes else "other"
            seconds = time.perf_counter() - began
            self._metrics.answered(route, response["status"], response["first"], seconds)

    async def _whole(self, receive: Receive) -> Receive:
        """Reads the body, up to the limit, and returns a `receive` that gives it in one piece."""
        body = bytearray()
        more = True
        while more:
            message = await receive()
            if message["type"] != "http.request":  # the client has disconnected
                return receive
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._limit:
                raise self._too_large()
        given = False

        async def replayed() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": bytes(body), "more_body": False}

        return replayed

    def _too_large(self) -> ApiError:
        return ApiError(
            f"The request is larger than {self._limit} bytes, the limit of this server.",
            status=413,
        )


async def send_error(error: ApiError, send: Send) -> None:
    """Sends an error as a whole response."""
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
