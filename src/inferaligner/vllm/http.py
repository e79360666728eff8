"""Middleware for vLLM's OpenAI-compatible server, which loads it by name (`--middleware`).

- Answers get an object `inferaligner`: open, score, layer, strength, action, aligner, and opened_at if a
  monitor opened the answer. In a stream it is in the last chunk with a choice (the one with its
  `finish_reason`), because OpenAI's clients expect a choice in every chunk.
- Answers get the header `X-InferAligner-Open: true` or `false`, for proxies that do not read bodies. The
  headers of a stream are sent with its first event, when the gate has decided.
- `GET /inferaligner` returns the artifact, the operating point and the counts of this process.
- `/metrics` shows `inferaligner_requests_total`, `inferaligner_monitor_opened_total` and
  `inferaligner_gate_score`.
- Neutral fields of a request (null, `"tools": []`) are removed, because vLLM would reject them.
- `GET /v1/models/NAME`, which OpenAI's clients call and vLLM does not have.
- Errors name the field as the client wrote it.
- HEAD works on every path with GET, and a slash at the end of a path is ignored.
- A web page that may read vLLM's answers (`--allow-origin`) may read the header too.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from inferaligner.server_shared.gate_report import OPEN_HEADER
from inferaligner.server_shared.tolerant_paths import App, Message, Receive, Send, TolerantPaths
from inferaligner.vllm.decision_reports import REPORTS
from inferaligner.vllm.frontend_patches import install
from inferaligner.vllm.request_body import ROUTES, normalized_body
from inferaligner.vllm.request_errors import readable_error
from inferaligner.vllm.settings import KEY, EngineSettings

INFO_ROUTE = "/inferaligner"
_MODELS = "/v1/models"
_DONE = b"data: [DONE]"


class GateMiddleware:
    """ASGI middleware. Creating it also installs the front end's patches in this process."""

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
            await JSONResponse(_info(scope))(scope, receive, send)
        elif scope["method"] == "GET" and scope["path"].startswith(_MODELS + "/"):
            name = scope["path"].removeprefix(_MODELS + "/")
            await self._app({**scope, "path": _MODELS}, receive, _OneModel(send, name))
        elif scope["method"] != "POST":
            await self._app(scope, receive, send)
        else:
            request = _NormalizedRequest(receive) if scope["path"] in ROUTES else None
            await self._app(scope, request or receive, _AnswerRewriter(send, request))


class _OneModel:
    """Replaces `send`: reduces the list of models to one model, or to status 404."""

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
            model = next((each for each in models if each["id"] == self._name), None)
            error = {
                "message": f"There is no model {self._name!r:.100}; this server has "
                f"{', '.join(repr(each['id']) for each in models)}.",
                "type": "not_found_error",
                "param": "model",
                "code": "model_not_found",
            }
            self._body = _dump({"error": error} if model is None else model)
            headers = MutableHeaders(raw=list(self._start["headers"]))
            headers["content-length"] = str(len(self._body))
            self._start = {**self._start, "status": 404 if model is None else 200, "headers": headers.raw}
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": self._body, "more_body": False})


class _NormalizedRequest:
    """Replaces `receive`: returns the body of a request in one piece, normalised for vLLM."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.body: bytes | None = None  # as the client sent it; None until it is complete

    async def __call__(self) -> Message:
        if self.body is not None:
            return await self._receive()
        body, more = bytearray(), True
        while more:
            message = await self._receive()
            if message["type"] != "http.request":
                return message  # the client disconnected
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.body = bytes(body)
        return {"type": "http.request", "body": normalized_body(self.body), "more_body": False}


class _AnswerRewriter:
    """Replaces `send`: adds reports to JSON answers and event streams, and passes on everything else."""

    def __init__(self, send: Send, request: _NormalizedRequest | None) -> None:
        self._send = send
        self._request = request
        self._start: Message | None = None  # of an answer whose headers are not sent yet
        self._body = b""
        self._stream: _EventStream | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            content_type = Headers(raw=list(message.get("headers", ()))).get("content-type", "")
            kind = content_type.partition(";")[0].strip().lower()
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
                        return  # no complete event yet
                    await self._begin(self._stream.report())
                if more and not message["body"]:
                    return  # the event is held back until the next one
            elif self._start is not None:
                self._body += message.get("body", b"")
                if not more:
                    await self._finish()
                return
        await self._send(message)

    async def _finish(self) -> None:
        assert self._start is not None
        body, report = with_report(self._body)
        if self._start["status"] == 400 and self._request is not None:
            body = readable_error(body, self._request.body or b"")
        await self._begin(report, length=len(body))
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _begin(self, report: Any, length: int | None = None) -> None:
        """Sends the start of the answer, with the gate's header if there is a report."""
        assert self._start is not None
        start, self._start = self._start, None
        headers = MutableHeaders(raw=list(start["headers"]))
        del headers[OPEN_HEADER]
        if length is not None:
            headers["content-length"] = str(length)
        if report is not None:
            several = report if isinstance(report, list) else [report]
            headers[OPEN_HEADER] = "true" if any(each.get("open") for each in several) else "false"
            if "access-control-allow-origin" in headers:
                headers.append("access-control-expose-headers", OPEN_HEADER.lower())
        await self._send({**start, "headers": headers.raw})


class _EventStream:
    """Splits a stream into server-sent events, and adds the report to the last one with a choice.

    An event that ends a choice is held back until the next one, which shows whether other choices continue.
    With a single choice the next event follows at once.
    """

    def __init__(self) -> None:
        self.begun = False  # a complete event has arrived
        self._rest = b""
        self._id = ""
        self._held: tuple[bytes, dict[str, Any]] | None = None  # the event that is held back, and its JSON

    def report(self) -> Any:
        """The report on the request that this stream answers; None if there is none yet."""
        return REPORTS.of(self._id)

    def feed(self, data: bytes, *, last: bool) -> bytes:
        """Takes the next bytes of vLLM's stream; returns the bytes that can be sent."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        self.begun = self.begun or bool(events)
        out = b"".join(self._event(event) for event in events)
        if last:
            out, self._rest = out + self._release(with_report=True) + self._rest, b""
        return out

    def _event(self, event: bytes) -> bytes:
        """The event that was held back, and this one unless it is held back now."""
        name, value = _parsed(event)
        choices = value.get("choices")
        if not isinstance(choices, list):
            done = event.strip() == _DONE
            return self._release(with_report=done) + self._without_choices(event, name, value) + b"\n\n"
        self._id = str(value.get("id"))
        if _carries_report(value):
            # From vLLM 0.33 on the last chunk carries vLLM's copy; the report is added below.
            value = _moved(value)
            del value[KEY]
            event = name + _dump(value)
        out = self._release(with_report=not choices)
        if any(isinstance(choice, dict) and choice.get("finish_reason") for choice in choices):
            self._held = (event, value)
            return out
        return out + event + b"\n\n"

    def _without_choices(self, event: bytes, name: bytes, value: dict[str, Any]) -> bytes:
        """Adds the report to an event of another API: in the Responses API to the last event, which holds the
        whole answer; in the Messages API to the `message_delta`, which says why the answer ended."""
        answer, message = value.get("response"), value.get("message")
        if isinstance(answer, dict) and _carries_report(answer):
            return name + _dump({**value, "response": _moved(answer)})
        if value.get("type") == "message_start" and isinstance(message, dict):
            self._id = str(message.get("id"))
        elif value.get("type") == "message_delta" and (report := self.report()) is not None:
            return name + _dump({**value, KEY: report})
        return event

    def _release(self, *, with_report: bool) -> bytes:
        """The event that was held back; with the report if no choice comes after it."""
        if self._held is None:
            return b""
        (event, value), self._held = self._held, None
        report = self.report() if with_report else None
        return (event if report is None else b"data: " + _dump({**value, KEY: report})) + b"\n\n"


def _parsed(event: bytes) -> tuple[bytes, dict[str, Any]]:
    """The text of an event up to its JSON, and the JSON object; {} if there is none."""
    name, field, payload = event.rpartition(b"data: ")
    try:
        value = json.loads(payload) if field else None
    except ValueError:
        value = None
    return name + field, value if isinstance(value, dict) else {}


def with_report(body: bytes) -> tuple[bytes, Any]:
    """Moves the report of a JSON answer to its own field; returns the new body and the report.

    A body without a report is returned unchanged, with None.
    """
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
    recorded = REPORTS.of(str(answer.get("id")))
    # vLLM's copy is that of the answer that ended last; others are missing with several prompts or answers.
    if isinstance(recorded, list) or (recorded is not None and "opened_at" in recorded):
        report = recorded
    return {**answer, "kv_transfer_params": params or None, KEY: report}


def _info(scope: Message) -> dict[str, Any]:
    config = getattr(scope["app"].state, "vllm_config", None)
    settings = None if config is None else EngineSettings.from_config(config)
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


def _dump(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
