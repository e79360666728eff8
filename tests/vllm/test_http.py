"""The middleware around applications that answer like vLLM's server; needs no vLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import pytest

from inferaligner.vllm import decision_reports, http
from inferaligner.vllm.decision_reports import Reports
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
    return fresh


def ask(
    parts: Sequence[bytes],
    kind: str,
    *,
    method: str = "POST",
    path: str = "/v1/chat/completions",
    status: int = 200,
    body: bytes = b"",
    headers: Sequence[tuple[bytes, bytes]] = (),
    asked: list[Any] | None = None,
) -> Any:
    """Headers and body parts that a client gets from an application that sends `parts` with `headers`.

    The application's requests are appended to `asked`: method, path and body.
    """
    sent: list[Any] = []
    more_headers = headers

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if method == "POST":
            message = await receive()
            if asked is not None:
                asked.append((scope["method"], scope["path"], message["body"]))
        elif asked is not None:
            asked.append((scope["method"], scope["path"], b""))
        length = str(sum(map(len, parts))).encode()
        headers = [(b"content-type", kind.encode()), (b"content-length", length), *more_headers]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        for number, part in enumerate(parts):
            more = number + 1 < len(parts)
            await send({"type": "http.response.body", "body": part, "more_body": more})

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

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


def test_parameters_of_other_connectors_stay() -> None:
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
    reports.record("a", "cmpl-1-0", REPORT)
    reports.record("b", "cmpl-1-1", other)
    answer = {"id": "cmpl-1", "choices": [], "kv_transfer_params": {KEY: REPORT}}
    _, (body,) = ask([json.dumps(answer).encode()], "application/json", path="/v1/completions")
    assert json.loads(body)[KEY] == [REPORT, other]


def events(*values: Any) -> bytes:
    return b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)


@pytest.mark.parametrize(
    ("report", "header"), [(REPORT, b"true"), (CLOSED, b"false"), ([CLOSED, REPORT], b"true")]
)
def test_the_header_of_an_answer(reports: Reports, report: Any, header: bytes) -> None:
    several = report if isinstance(report, list) else [report]
    for number, report in enumerate(several):
        reports.record(str(number), f"c-{number}", report)
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
@pytest.mark.parametrize("usage", [False, True])
@pytest.mark.parametrize("answers", [1, 2])
def test_the_last_chunk_with_a_choice_has_the_report(
    reports: Reports, size: int, usage: bool, answers: int
) -> None:
    reports.record("internal", "chatcmpl-1", REPORT)
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 5, "model": "m"}
    chunks = [{**common, "choices": [{"delta": {"content": word}}]} for word in ("a", "bä", "")]
    chunks += [
        {**common, "choices": [{"index": at, "delta": {}, "finish_reason": "stop"}]} for at in range(answers)
    ]
    chunks += [{**common, "choices": [], "usage": {"total_tokens": 3}}] * usage
    whole = events(*chunks) + b"data: [DONE]\n\n"
    parts = [whole[at : at + size] for at in range(0, len(whole), size)]
    _, found = ask(parts, "text/event-stream; charset=utf-8")
    *chunks_sent, done, rest = b"".join(found).split(b"\n\n")
    values = [json.loads(event.removeprefix(b"data: ")) for event in chunks_sent]
    chunks[-1 - usage] = {**chunks[-1 - usage], KEY: REPORT}
    assert values == chunks
    assert done == b"data: [DONE]" and rest == b""


def test_the_report_stands_once_in_a_stream(reports: Reports) -> None:
    """vLLM 0.33 puts `kv_transfer_params` on the last chunk of a stream; 0.32 does not."""
    reports.record("internal", "c", REPORT)
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


def test_a_stream_that_breaks_off_loses_nothing(reports: Reports) -> None:
    """The chunk that waits for the next one leaves with the end of the stream, or before an error."""
    reports.record("internal", "1", REPORT)
    ending = {"id": "1", "choices": [{"finish_reason": "length"}]}
    _, found = ask([events(ending)], "text/event-stream")
    assert json.loads(b"".join(found).removeprefix(b"data: ")) == {**ending, KEY: REPORT}
    error = {"error": {"message": "broken"}}
    _, found = ask([events(ending, error) + b"data: [DONE]\n\n"], "text/event-stream")
    assert b"".join(found) == events(ending, error) + b"data: [DONE]\n\n"


def test_the_messages_api_tells_it_with_the_reason(reports: Reports) -> None:
    reports.record("internal", "chatcmpl-1", REPORT)
    start = {"type": "message_start", "message": {"id": "chatcmpl-1"}}
    delta = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}
    stream = b"event: message_start\n" + events(start) + b"event: message_delta\n" + events(delta)
    headers, found = ask([stream], "text/event-stream", path="/v1/messages")
    *_, last = b"".join(found).strip().split(b"\n\n")
    assert last.startswith(b"event: message_delta\n")
    assert json.loads(last.rpartition(b"data: ")[2]) == {**delta, KEY: REPORT}
    assert headers[HEADER] == b"true"


def test_the_last_event_of_the_responses_api() -> None:
    response = {"id": "resp_1", "kv_transfer_params": {KEY: REPORT}}
    stream = b"event: response.completed\n" + events({"type": "response.completed", "response": response})
    _, found = ask([stream], "text/event-stream", path="/v1/responses")
    name, _, payload = b"".join(found).strip().rpartition(b"data: ")
    assert name == b"event: response.completed\n"
    assert json.loads(payload)["response"] == {"id": "resp_1", "kv_transfer_params": None, KEY: REPORT}


def test_requests_arrive_without_what_says_nothing() -> None:
    asked: list[Any] = []
    body = {"messages": [{"role": "user", "content": "Hello"}], "tools": [], "n": None}
    ask(
        [b"{}"], "application/json", path="/v1/chat/completions/", body=json.dumps(body).encode(), asked=asked
    )
    ask([b"{}"], "application/json", path="/v1/embeddings", body=b'{"n": null}', asked=asked)
    assert asked[0][:2] == ("POST", "/v1/chat/completions")
    assert json.loads(asked[0][2]) == {"messages": body["messages"]}
    assert asked[1] == ("POST", "/v1/embeddings", b'{"n": null}')


def test_errors_name_the_field_as_it_was_written() -> None:
    """As vLLM 0.32 reports a message whose content is a number: of every kind of message, all branches."""
    place = "body.messages.0.ChatCompletion{}MessageParam"
    problems = [
        {"type": kind, "loc": place.format(role) + field, "msg": message, "input": "5"}
        for role in ("Developer", "System", "User")
        for kind, field, message in (
            ("string_type", ".content", "Input should be a valid string"),
            ("iterable_type", ".content", "Input should be iterable"),
            ("literal_error", ".role", f"Input should be '{role.lower()}'"),
        )
        if not (role == "User" and field == ".role")
    ]
    message = "8 validation errors:\n" + "\n".join(f"  {problem}" for problem in problems)
    error = {"message": message, "type": "Bad Request", "param": place.format("Developer"), "code": 400}
    answer = json.dumps({"error": error}).encode()
    body = b'{"messages": [{"role": "user", "content": 5}]}'
    headers, (found,) = ask([answer], "application/json", status=400, body=body)
    shown = json.loads(found)["error"]
    assert shown["param"] == "messages.0.content" and shown["type"] == "Bad Request"
    assert (
        shown["message"] == "messages.0.content: Input should be a valid string; or Input should be iterable"
    )
    assert int(headers[b"content-length"]) == len(found)
    missing = {
        "type": "missing",
        "loc": "body.messages",
        "msg": "Field required",
        "input": "<dict of 0 items>",
    }
    error = {"message": f"1 validation error:\n  {missing}", "param": "body.messages"}
    _, (found,) = ask([json.dumps({"error": error}).encode()], "application/json", status=400, body=b"{}")
    assert json.loads(found)["error"] == {"message": "messages: Field required", "param": "messages"}


@pytest.mark.parametrize(
    "message", ["The model `x` does not exist.", "3 validation errors:\n  of another form"]
)
def test_errors_in_an_unknown_format_stay(message: str) -> None:
    answer = json.dumps({"error": {"message": message}}).encode()
    _, (found,) = ask([answer], "application/json", status=400, body=b"{}")
    assert found == answer


def test_errors_name_the_part_of_a_message() -> None:
    def error_of(part: dict[str, Any], *problems: tuple[str, str]) -> Any:
        lines = [
            f"0.ChatCompletionContentPart{place}\n  {reason} [type=some, input_value=5]\n    For more"
            for place, reason in problems
        ]
        message = f"{len(problems)} validation errors for ValidatorIterator\n" + "\n".join(lines)
        messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": [part]}]
        answer = json.dumps({"error": {"message": message, "param": None}}).encode()
        body = json.dumps({"messages": messages}).encode()
        _, (found,) = ask([answer], "application/json", status=400, body=body)
        return json.loads(found)["error"]

    no_image = ("ImageParam.type", "Input should be 'image_url'")
    assert error_of(
        {"type": "text", "text": 5}, ("TextParam.text", "Input should be a valid string"), no_image
    ) == {
        "message": "messages.1.content.0.text: Input should be a valid string",
        "param": "messages.1.content.0.text",
    }
    unknown = error_of({"type": "txt", "text": "a"}, ("TextParam.type", "Input should be 'text'"), no_image)
    assert unknown["param"] == "messages.1.content.0" and "no known type" in unknown["message"]


@pytest.mark.parametrize(
    ("path", "status", "word"),
    [
        ("/v1/models/org/model:8b", 200, '"id":"org/model:8b"'),
        ("/v1/models/other", 404, "There is no model 'other'; this server has 'org/model:8b'."),
    ],
)
def test_one_model(path: str, status: int, word: str) -> None:
    listed = b'{"object": "list", "data": [{"id": "org/model:8b"}]}'
    asked: list[Any] = []
    headers, (found,) = ask(
        [listed[:9], listed[9:]], "application/json", method="GET", path=path, asked=asked
    )
    assert asked == [("GET", "/v1/models", b"")]
    assert word in found.decode() and int(headers[b"content-length"]) == len(found)
    assert ('"error"' in found.decode()) == (status == 404)


def test_head_and_browsers(reports: Reports) -> None:
    asked: list[Any] = []
    headers, found = ask([b"{}", b""], "application/json", method="HEAD", path="/v1/models/", asked=asked)
    assert asked == [("GET", "/v1/models", b"")] and b"".join(found) == b""
    assert headers[b"content-length"] == b"2"
    reports.record("internal", "1", REPORT)
    answer = json.dumps({"id": "1", "kv_transfer_params": {KEY: REPORT}}).encode()
    allowed = [(b"access-control-allow-origin", b"http://localhost:3000")]
    headers, _ = ask([answer], "application/json", headers=allowed)
    assert headers[b"access-control-expose-headers"] == HEADER
    headers, _ = ask([answer], "application/json")
    assert b"access-control-expose-headers" not in headers


def test_the_info_route_without_an_aligner() -> None:
    _, (body,) = ask([b"never asked"], "text/plain", method="GET", path="/inferaligner")
    assert json.loads(body) == {"active": False}


def test_reports_count_every_request_once(reports: Reports) -> None:
    for _ in range(3):
        reports.record("a", "client-a", REPORT)
    reports.record("b", "client-b", {**REPORT, "open": False, "action": "none"})
    reports.record("c", "client-c", {"score": None, "open": None, "action": "undecided"})
    assert reports.counts == {"requests": 2, "opened": 1, "steered": 1, "none": 1}
    assert reports.of("client-a") == REPORT and reports.of("client-c") is None


def test_reports_do_not_pile_up(reports: Reports, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_reports, "_REMEMBERED", 10)
    for number in range(30):
        reports.record(f"i{number}", f"c{number}", REPORT)
    assert len(reports.by_request) <= 10 and reports.of("c29") == REPORT
    assert reports.counts["requests"] == 30
