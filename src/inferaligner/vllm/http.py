"""What the OpenAI-compatible server adds, as middleware that vLLM loads by name (`--middleware`).

- Answers get an `inferaligner` object: open, score, layer, strength, action, aligner, and opened_at where a
  monitor opened the answer. In a stream it is in the last chunk that has a choice, which tells how the answer
  ended: clients of OpenAI's expect no chunk without one.
- `X-InferAligner-Open: true` or `false` in the headers, for proxies that do not read bodies. In a stream too:
  its headers wait for the first event, by when the gate has decided.
- `GET /inferaligner` tells the artifact, the operating point and the counts of this process.
- `/metrics` gets `inferaligner_requests_total` and `inferaligner_gate_score`.
- Fields of a request that say nothing (null, `"tools": []`) are left out, where vLLM would refuse them.
- `GET /v1/models/NAME`, which OpenAI's clients call and vLLM does not have.
- Errors name the field as the client wrote it.
- HEAD is answered where GET is, and a slash at the end of a path is no other path.
- Where vLLM lets a web page read an answer (`--allow-origin`), the page may read that header too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from inferaligner.serving import gate_report
from inferaligner.serving.tolerant_paths import App, Message, Receive, Send, TolerantPaths
from inferaligner.vllm.frontend_patches import REPORTS, install
from inferaligner.vllm.request_body import ROUTES, plain_body
from inferaligner.vllm.request_errors import plain_error
from inferaligner.vllm.settings import KEY, EngineSettings

INFO_ROUTE = "/inferaligner"
OPEN_HEADER = gate_report.OPEN_HEADER.lower().encode()
_MODELS = "/v1/models"
_CORS = b"access-control-allow-origin"
_DONE = b"data: [DONE]"


class GateMiddleware:
    """ASGI middleware; with it, this process checks prompts and notes decisions."""

    def __init__(self, app: App) -> None:
        install(metrics=True)
        self._app = app
        self._tolerant = TolerantPaths(self._answer)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._tolerant(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == INFO_ROUTE:
            await _answer(send, _info(scope))
        elif scope["method"] == "GET" and scope["path"].startswith(_MODELS + "/"):
            name = scope["path"].removeprefix(_MODELS + "/")
            await self._app({**scope, "path": _MODELS}, receive, _OneModel(send, name))
        elif scope["method"] != "POST":
            await self._app(scope, receive, send)
        else:
            request = _PlainBody(receive) if scope["path"] in ROUTES else None
            await self._app(scope, request or receive, _Rewriter(send, request))


class _OneModel:
    """Stands in for `send`: makes of the list of models one of them, or status 404."""

    def __init__(self, send: Send, name: str) -> None:
        self._send = send
        self._name = name
        self._start: Message = {}
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if message.get("more_body", False):
            return
        if self._start["status"] == 200:
            models = json.loads(self._body)["data"]
            found = next((model for model in models if model["id"] == self._name), None)
            error = {
                "message": f"There is no model {self._name!r:.100}; this server has "
                f"{', '.join(repr(model['id']) for model in models)}.",
                "type": "not_found_error",
                "param": "model",
                "code": "model_not_found",
            }
            self._body = _dump({"error": error} if found is None else found)
            headers = [each for each in self._start["headers"] if each[0].lower() != b"content-length"]
            headers.append((b"content-length", str(len(self._body)).encode()))
            self._start = {**self._start, "status": 404 if found is None else 200, "headers": headers}
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": self._body, "more_body": False})


class _PlainBody:
    """Stands in for `receive`: gives the body of a request in one piece, as `plain_body` makes it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.body: bytes | None = None  # as the client sent it, once it is there

    async def __call__(self) -> Message:
        if self.body is not None:
            return await self._receive()
        body, more = bytearray(), True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message  # the client is gone
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.body = bytes(body)
        return {"type": "http.request", "body": plain_body(self.body), "more_body": False}


class _Rewriter:
    """Stands in for `send`: rewrites JSON answers and event streams, and passes on everything else."""

    def __init__(self, send: Send, request: _PlainBody | None) -> None:
        self._send = send
        self._request = request
        self._start: Message | None = None  # of an answer whose headers are not known yet
        self._body = b""
        self._stream: _EventStream | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            kind = _content_type(message)
            if kind == "text/event-stream":
                self._stream = _EventStream()
            if kind in ("application/json", "text/event-stream"):
                self._start = message
                return
        elif message["type"] == "http.response.body":
            more = bool(message.get("more_body", False))
            if self._stream is not None:
                message = {**message, "body": self._stream.feed(message.get("body", b""), last=not more)}
                if self._start is not None:
                    if more and not self._stream.begun:
                        return  # not one whole event yet
                    await self._begin([], self._stream.told())
                if more and not message["body"]:
                    return  # an event that waits for the next one
            elif self._start is not None:
                self._body += message.get("body", b"")
                if not more:
                    await self._finish()
                return
        await self._send(message)

    async def _finish(self) -> None:
        assert self._start is not None
        body, told = with_report(self._body)
        if self._start["status"] == 400 and self._request is not None:
            body = plain_error(body, self._request.body or b"")
        await self._begin([(b"content-length", str(len(body)).encode())], told)
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _begin(self, headers: list[tuple[bytes, bytes]], told: Any) -> None:
        assert self._start is not None
        start, self._start = self._start, None
        replaced = {name for name, _ in headers} | {OPEN_HEADER}
        kept = [(name, value) for name, value in start["headers"] if name.lower() not in replaced]
        if told is not None:
            several = told if isinstance(told, list) else [told]
            is_open = any(each.get("open") for each in several)
            headers = [*headers, (OPEN_HEADER, b"true" if is_open else b"false")]
            if any(name.lower() == _CORS for name, _ in kept):
                headers.append((b"access-control-expose-headers", OPEN_HEADER))
        await self._send({**start, "headers": [*kept, *headers]})


class _EventStream:
    """Server-sent events, cut into whole events; the report goes into the last one that has a choice.

    An event that ends a choice waits for the next one, which shows whether other choices go on; where there
    is one choice, that follows at once.
    """

    def __init__(self) -> None:
        self.begun = False  # a whole event has come
        self._rest = b""
        self._id = ""
        self._ending: tuple[bytes, dict[str, Any]] | None = None  # an event that waits, and what is in it

    def told(self) -> Any:
        """The report on the request that this stream answers, as far as it is known."""
        return REPORTS.of(self._id)

    def feed(self, data: bytes, *, last: bool) -> bytes:
        """The bytes that can leave by now."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        self.begun = self.begun or bool(events)
        out = b"".join(self._event(event) for event in events)
        if last:
            out, self._rest = out + self._released(report=True) + self._rest, b""
        return out

    def _event(self, event: bytes) -> bytes:
        """What leaves with an event: itself, unless it waits, and the one that has waited for it."""
        name, value = _parsed(event)
        choices = value.get("choices")
        if not isinstance(choices, list):
            done = event.strip() == _DONE
            return self._released(report=done) + self._without_choices(event, name, value) + b"\n\n"
        self._id = str(value.get("id"))
        if _carries_report(value):
            # From vLLM 0.33 on it comes with the last chunk of a stream as well, but has its own place.
            value = _moved(value)
            del value[KEY]
            event = name + _dump(value)
        out = self._released(report=not choices)
        if any(isinstance(choice, dict) and choice.get("finish_reason") for choice in choices):
            self._ending = (event, value)
            return out
        return out + event + b"\n\n"

    def _without_choices(self, event: bytes, name: bytes, value: dict[str, Any]) -> bytes:
        """An event of the Responses API, whose last one has the whole answer, or of the Messages API, where
        the reason why an answer ended comes in a `message_delta`."""
        answer, message = value.get("response"), value.get("message")
        if isinstance(answer, dict) and _carries_report(answer):
            return name + _dump({**value, "response": _moved(answer)})
        if value.get("type") == "message_start" and isinstance(message, dict):
            self._id = str(message.get("id"))
        elif value.get("type") == "message_delta" and (told := self.told()) is not None:
            return name + _dump({**value, KEY: told})
        return event

    def _released(self, *, report: bool) -> bytes:
        """The event that waits, with the report if no choice comes after it."""
        if self._ending is None:
            return b""
        (event, value), self._ending = self._ending, None
        told = self.told() if report else None
        return (event if told is None else b"data: " + _dump({**value, KEY: told})) + b"\n\n"


def _parsed(event: bytes) -> tuple[bytes, dict[str, Any]]:
    """The JSON object of an event, and what stands before it; an empty one where there is none."""
    name, found, payload = event.rpartition(b"data: ")
    try:
        value = json.loads(payload) if found else None
    except ValueError:
        value = None
    return name + found, value if isinstance(value, dict) else {}


def with_report(body: bytes) -> tuple[bytes, Any]:
    """A JSON answer with its report as an object of its own, and the report; any other body as it is, and
    None."""
    try:
        value = json.loads(body)
    except ValueError:
        return body, None
    if not isinstance(value, dict) or not _carries_report(value):
        return body, None
    answer = _moved(value)
    return _dump(answer), answer[KEY]


def _carries_report(answer: dict[str, Any]) -> bool:
    params = answer.get("kv_transfer_params")
    return isinstance(params, dict) and KEY in params


def _moved(answer: dict[str, Any]) -> dict[str, Any]:
    params = dict(answer["kv_transfer_params"])
    report = params.pop(KEY)
    noted = REPORTS.of(str(answer.get("id")))
    # vLLM passes on what the answer that ended last was told: not of all prompts, nor of all answers to one.
    if isinstance(noted, list) or (noted is not None and "opened_at" in noted):
        report = noted
    return {**answer, "kv_transfer_params": params or None, KEY: report}


def _info(scope: Message) -> dict[str, Any]:
    config = getattr(scope["app"].state, "vllm_config", None)
    settings = None if config is None else EngineSettings.of(config)
    if settings is None:
        return {"active": False}
    artifact = settings.artifact()
    point = artifact.operating_point
    return {
        "active": True,
        "aligner": {
            "sha256": settings.sha256,
            "target": artifact.provenance.target.spec,
            "gate": artifact.gate.kind,
            "reads": [[read.layer, read.offset] for read in artifact.gate.reads],
            "bias": artifact.gate.bias,
            "steered_layers": list(artifact.steering.layers),
            "strength": artifact.steering.strength,
            "strengths": list(artifact.steering.strengths.values()),
            "positions": artifact.steering.positions,
        },
        "operating_point": None
        if point is None
        else {
            "max_false_open": point.max_false_open,
            "confidence": point.confidence,
            "rule": point.rule,
            "promised": point.promised,
        },
        "version": settings.version,
        "shadow": settings.shadow,
        "on_open": settings.on_open,
        "prompts": settings.prompts,
        "monitor": settings.monitor and artifact.monitor is not None,
        "adapter": None if settings.adapter is None else Path(settings.adapter).name,
        "adapters": settings.adapters,
        "counts": dict(REPORTS.counts),
    }


async def _answer(send: Send, value: dict[str, Any]) -> None:
    body = _dump(value)
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _content_type(start: Message) -> str:
    for name, value in start.get("headers", ()):
        if name.lower() == b"content-type":
            return bytes(value).decode("latin-1").partition(";")[0].strip().lower()
    return ""


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
