"""What the OpenAI-compatible server adds, as middleware that vLLM loads by name (`--middleware`).

- Answers get an `inferaligner` object: open, score, layer, strength, action, aligner, and opened_at where a
  monitor opened the answer. In a stream it comes in a chunk of its own, before the end.
- `X-InferAligner-Open: true` or `false` in the headers, for proxies that do not read bodies. In a stream too:
  its headers wait for the first event, by when the gate has decided.
- `GET /inferaligner` tells the artifact, the operating point and the counts of this process.
- `/metrics` gets `inferaligner_requests_total` and `inferaligner_gate_score`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from inferaligner import gate_report
from inferaligner.vllm.front import REPORTS, install
from inferaligner.vllm.settings import KEY, EngineSettings

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

INFO_ROUTE = "/inferaligner"
OPEN_HEADER = gate_report.OPEN_HEADER.lower().encode()
_DONE = b"data: [DONE]"


class GateMiddleware:
    """ASGI middleware; with it, this process checks prompts and notes decisions."""

    def __init__(self, app: App) -> None:
        install(metrics=True)
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] == INFO_ROUTE:
            await _answer(send, _info(scope))
        elif scope["method"] != "POST":
            await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, _Rewriter(send))


class _Rewriter:
    """Stands in for `send`: rewrites JSON answers and event streams, and passes on everything else."""

    def __init__(self, send: Send) -> None:
        self._send = send
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
            elif self._start is not None:
                self._body += message.get("body", b"")
                if not more:
                    await self._finish()
                return
        await self._send(message)

    async def _finish(self) -> None:
        body, told = with_report(self._body)
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
        await self._send({**start, "headers": [*kept, *headers]})


class _EventStream:
    """Server-sent events, cut into whole events; the report goes before the end of the stream."""

    def __init__(self) -> None:
        self.begun = False  # a whole event has come
        self._rest = b""
        self._last: dict[str, Any] = {}

    def told(self) -> Any:
        """The report on the request that this stream answers, as far as it is known."""
        return REPORTS.of(str(self._last.get("id")))

    def feed(self, data: bytes, *, last: bool) -> bytes:
        """The bytes that can leave by now."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        self.begun = self.begun or bool(events)
        out = b"".join(self._event(event) + b"\n\n" for event in events)
        if last:
            out, self._rest = out + self._rest, b""
        return out

    def _event(self, event: bytes) -> bytes:
        if event.strip() == _DONE:
            chunk = self._report()
            return event if chunk is None else b"data: " + chunk + b"\n\n" + event
        name, found, payload = event.rpartition(b"data: ")
        if not found:
            return event
        try:
            value = json.loads(payload)
        except ValueError:
            return event
        if not isinstance(value, dict):
            return event
        if "choices" in value:
            self._last = {key: value[key] for key in ("id", "object", "created", "model") if key in value}
            if _carries_report(value):
                # From vLLM 0.33 on it comes with the last chunk of a stream as well, but has its own place.
                bare = _moved(value)
                del bare[KEY]
                return name + found + _dump(bare)
        elif isinstance(answer := value.get("response"), dict) and _carries_report(answer):
            return name + found + _dump({**value, "response": _moved(answer)})
        return event

    def _report(self) -> bytes | None:
        report = self.told()
        return None if report is None else _dump({**self._last, "choices": [], KEY: report})


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
