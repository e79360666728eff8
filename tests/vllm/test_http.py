"""The middleware, around applications that answer as vLLM's server does: no vLLM needed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from inferaligner.vllm import front, http
from inferaligner.vllm.front import Reports
from inferaligner.vllm.http import GateMiddleware
from inferaligner.vllm.settings import KEY

REPORT = {"open": True, "score": 0.5, "layer": 3, "strength": 0.2, "action": "steered", "aligner": "abc"}
CLOSED = {**REPORT, "open": False, "score": -0.5, "action": "none"}
HEADER = b"x-inferaligner-open"


@pytest.fixture(autouse=True)
def reports(monkeypatch: pytest.MonkeyPatch) -> Reports:
    fresh = Reports()
    monkeypatch.setattr(http, "install", lambda *, metrics: None)
    monkeypatch.setattr(http, "REPORTS", fresh)
    monkeypatch.setattr(front, "REPORTS", fresh)
    return fresh


def ask(
    parts: Sequence[bytes], kind: str, *, method: str = "POST", path: str = "/v1/chat/completions"
) -> Any:
    """Status, headers and body parts that a client gets from an application that sends `parts`."""
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        length = str(sum(map(len, parts))).encode()
        headers = [(b"content-type", kind.encode()), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, part in enumerate(parts):
            more = number + 1 < len(parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    state = type("State", (), {"vllm_config": None})()
    scope = {"type": "http", "method": method, "path": path, "app": type("App", (), {"state": state})()}
    asyncio.run(GateMiddleware(app)(scope, receive, send))
    assert sent[0]["type"] == "http.response.start"
    assert [message["type"] for message in sent[1:]] == ["http.response.body"] * (len(sent) - 1)
    return dict(sent[0]["headers"]), [message["body"] for message in sent[1:]]


def test_the_report_is_an_object_of_its_own() -> None:
    answer = {"id": "chatcmpl-1", "choices": [{"text": "é"}], "kv_transfer_params": {KEY: REPORT}}
    body = json.dumps(answer).encode()
    headers, parts = ask([body[:30], body[30:]], "application/json; charset=utf-8")
    assert json.loads(b"".join(parts)) == {**answer, "kv_transfer_params": None, KEY: REPORT}
    assert int(headers[b"content-length"]) == len(b"".join(parts))


def test_what_other_connectors_say_stays() -> None:
    answer = {"id": "1", "kv_transfer_params": {KEY: REPORT, "remote": 1}}
    _, (body,) = ask([json.dumps(answer).encode()], "application/json")
    assert json.loads(body) == {"id": "1", "kv_transfer_params": {"remote": 1}, KEY: REPORT}


@pytest.mark.parametrize(
    "body", [b'{"error": {"code": 400}}', b"[1, 2]", b"not JSON", b"", b'{"kv_transfer_params": 3}']
)
def test_other_answers_are_passed_on(body: bytes) -> None:
    headers, parts = ask([body], "application/json")
    assert b"".join(parts) == body and int(headers[b"content-length"]) == len(body)
    headers, parts = ask([body], "text/plain")
    assert b"".join(parts) == body


def test_several_prompts_get_a_list(reports: Reports) -> None:
    other = {**REPORT, "open": False}
    reports.note("a", "cmpl-1-0", REPORT)
    reports.note("b", "cmpl-1-1", other)
    answer = {"id": "cmpl-1", "choices": [], "kv_transfer_params": {KEY: REPORT}}
    _, (body,) = ask([json.dumps(answer).encode()], "application/json", path="/v1/completions")
    assert json.loads(body)[KEY] == [REPORT, other]


def events(*values: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)


@pytest.mark.parametrize(
    ("told", "header"), [(REPORT, b"true"), (CLOSED, b"false"), ([CLOSED, REPORT], b"true")]
)
def test_the_header_of_an_answer(reports: Reports, told: Any, header: bytes) -> None:
    several = told if isinstance(told, list) else [told]
    for number, report in enumerate(several):
        reports.note(str(number), f"c-{number}", report)
    answer = json.dumps({"id": "c", "kv_transfer_params": {KEY: several[0]}}).encode()
    headers, _ = ask([answer], "application/json")
    assert headers[HEADER] == header
    stream = events({"id": "c", "choices": []}) + b"data: [DONE]\n\n"
    headers, _ = ask([stream[:9], stream[9:]], "text/event-stream")
    assert headers[HEADER] == header


def test_no_header_without_a_decision() -> None:
    """Unknown is not closed."""
    headers, _ = ask([b'{"error": {}}'], "application/json")
    assert HEADER not in headers
    headers, _ = ask([events({"id": "unknown", "choices": []})], "text/event-stream")
    assert HEADER not in headers


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_gets_a_chunk_before_its_end(reports: Reports, size: int) -> None:
    reports.note("internal", "chatcmpl-1", REPORT)
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
    chunks = [{**common, "choices": [{"delta": {"content": word}}]} for word in ("a", "bä", "")]
    whole = events(*chunks) + b"data: [DONE]\n\n"
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    _, found = ask(parts, "text/event-stream; charset=utf-8")
    *told, done, rest = b"".join(found).split(b"\n\n")
    values = [json.loads(event.removeprefix(b"data: ")) for event in told]
    assert values == [*chunks, {**common, "choices": [], KEY: REPORT}]
    assert done == b"data: [DONE]" and rest == b""


def test_the_report_stands_once_in_a_stream(reports: Reports) -> None:
    """vLLM 0.33 puts `kv_transfer_params` on the last chunk of a stream; 0.32 does not."""
    reports.note("internal", "c", REPORT)
    first = {"id": "c", "choices": [{"delta": {"content": "a"}}]}
    last = {"id": "c", "choices": [{"delta": {}, "finish_reason": "stop"}]}
    stream = events(first, {**last, "kv_transfer_params": {KEY: REPORT}}) + b"data: [DONE]\n\n"
    _, found = ask([stream], "text/event-stream")
    values = [json.loads(each.removeprefix(b"data: ")) for each in b"".join(found).split(b"\n\n")[:-2]]
    assert all(not value.get("kv_transfer_params") for value in values)
    assert [value[KEY] for value in values if KEY in value] == [REPORT]


def test_a_stream_is_not_held_back(reports: Reports) -> None:
    """Every event leaves with the message that completed it."""
    chunks = [events({"id": "1", "choices": [number]}) for number in range(3)]
    _, found = ask([*chunks, b"data: [DONE]\n\n"], "text/event-stream")
    assert found == [*chunks, b"data: [DONE]\n\n"]  # unknown request: nothing is added


def test_the_last_event_of_the_responses_api() -> None:
    response = {"id": "resp_1", "kv_transfer_params": {KEY: REPORT}}
    stream = b"event: response.completed\n" + events({"type": "response.completed", "response": response})
    _, found = ask([stream], "text/event-stream", path="/v1/responses")
    name, _, payload = b"".join(found).strip().rpartition(b"data: ")
    assert name == b"event: response.completed\n"
    assert json.loads(payload)["response"] == {"id": "resp_1", "kv_transfer_params": None, KEY: REPORT}


def test_the_info_route_without_an_aligner() -> None:
    _, (body,) = ask([b"never asked"], "text/plain", method="GET", path="/inferaligner")
    assert json.loads(body) == {"active": False}


def test_reports_count_every_request_once(reports: Reports) -> None:
    for _ in range(3):
        reports.note("a", "client-a", REPORT)
    reports.note("b", "client-b", {**REPORT, "open": False, "action": "none"})
    reports.note("c", "client-c", {"score": None, "open": None, "action": "undecided"})
    assert reports.counts == {"requests": 2, "opened": 1, "steered": 1, "none": 1}
    assert reports.of("client-a") == REPORT and reports.of("client-c") is None


def test_reports_do_not_pile_up(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front, "_REMEMBERED", 10)
    for number in range(30):
        reports.note(f"i{number}", f"c{number}", REPORT)
    assert len(reports.by_request) <= 10 and reports.of("c29") == REPORT
    assert reports.counts["requests"] == 30
