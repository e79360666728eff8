"""What ordinary clients send and expect: the real `openai` client, and the habits of others."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("openai", reason="the extra `dev` is not installed")

import openai
from openai.types import completion_create_params as completion_params
from openai.types.chat import ChatCompletionMessage, ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat_params

from inferaligner.server.keys import ApiKeys
from inferaligner.server.schema import ChatRequest, CompletionRequest, Message, StreamOptions
from tests.support.running_server import Running, Serve
from tests.support.tiny_aligner import PROMPTS

TURN = {"role": "user", "content": "Hello"}


@pytest.fixture(scope="module")
def client(server: Running) -> Any:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def post(server: Running, **fields: Any) -> httpx.Response:
    body = {"messages": [TURN], "max_tokens": 2, "temperature": 0, **fields}
    return server.client.post("/v1/chat/completions", json=body)


# -- the examples of its documentation ----------------------------------------------------------------------


def test_a_chat(client: Any) -> None:
    completion = client.chat.completions.create(
        model="tiny",
        messages=[
            {"role": "developer", "content": "Talk like a pirate."},
            {"role": "user", "content": "How do I check if a Python object is an instance of a class?"},
        ],
        max_tokens=4,
    )
    assert isinstance(completion.choices[0].message.content, str)
    assert completion.inferaligner["action"] in ("none", "steered")


def test_a_stream(client: Any) -> None:
    stream = client.chat.completions.create(model="tiny", messages=[TURN], max_tokens=4, stream=True)
    texts, reports = [], []
    for chunk in stream:
        texts.append(chunk.choices[0].delta.content)
        reports += [chunk.inferaligner] if hasattr(chunk, "inferaligner") else []
    assert any(texts) and reports[-1]["action"] in ("none", "steered")
    with client.chat.completions.stream(model="tiny", messages=[TURN], max_tokens=4) as events:
        final = list(events)[-1]
    assert final.type in ("content.done", "chunk")
    for chunk in client.completions.create(
        model="tiny", prompt="Once upon a time", max_tokens=4, stream=True
    ):
        assert isinstance(chunk.choices[0].text, str)


def test_the_asynchronous_client(server: Running) -> None:
    async def texts() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            stream = await client.chat.completions.create(
                model="tiny", messages=[TURN], max_tokens=4, stream=True
            )
            return [chunk.choices[0].delta.content async for chunk in stream]

    assert any(asyncio.run(texts()))


@pytest.mark.parametrize("streamed", [False, True])
def test_a_conversation_goes_on_with_the_messages_it_got(client: Any, streamed: bool) -> None:
    messages: list[Any] = [TURN]
    if streamed:
        with client.chat.completions.stream(model="tiny", messages=messages, max_tokens=4) as events:
            for _ in events:
                pass
            messages.append(events.current_completion_snapshot.choices[0].message)
    else:
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
        messages.append(answer.choices[0].message)
    messages.append({"role": "user", "content": "And now?"})
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
    assert answer.usage.prompt_tokens > 10


def test_tools_are_refused_with_the_reason(client: Any) -> None:
    function = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
    tools = [{"type": "function", "function": function}]
    with pytest.raises(openai.BadRequestError, match="does not serve tools") as refused:
        client.chat.completions.create(model="tiny", messages=[TURN], tools=tools)
    assert refused.value.param == "tools"
    with pytest.raises(openai.BadRequestError, match="does not serve tools"):
        result = {"role": "tool", "tool_call_id": "1", "content": "18 degrees"}
        client.chat.completions.create(model="tiny", messages=[TURN, result])


def test_the_responses_api_is_refused_with_what_to_use(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="chat/completions"):
        client.responses.create(model="tiny", input="Write a one-sentence bedtime story.")


def test_models(client: Any, serve: Serve) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'other'; this server has 'tiny'"):
        client.chat.completions.create(model="other", messages=[TURN])
    other = serve(settings={"model_name": "org/model:8b"})
    renamed = openai.OpenAI(base_url=f"{other.url}/v1", api_key="none")
    assert renamed.models.retrieve("org/model:8b").id == "org/model:8b"
    assert renamed.chat.completions.create(model="org/model:8b", messages=[TURN], max_tokens=1).id


# -- every field of OpenAI's --------------------------------------------------------------------------------


def test_every_field_of_openai_is_known() -> None:
    """A version of the client with a new field fails here: decide what the server does with it."""
    chat, completion = (set(model.model_fields) for model in (ChatRequest, CompletionRequest))
    streams = {"stream"}
    assert set(chat_params.CompletionCreateParamsBase.__annotations__) | streams <= chat
    assert set(completion_params.CompletionCreateParamsBase.__annotations__) | streams <= completion
    assert set(ChatCompletionStreamOptionsParam.__annotations__) == set(StreamOptions.model_fields)
    assert set(ChatCompletionMessage.model_fields) <= set(Message.model_fields)


@pytest.mark.parametrize(
    "field", sorted({*chat_params.CompletionCreateParamsBase.__annotations__, "stream"} - {"messages"})
)
def test_null_is_no_value(server: Running, field: str) -> None:
    answer = post(server, **{field: None})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "field", sorted({*completion_params.CompletionCreateParamsBase.__annotations__, "stream"} - {"prompt"})
)
def test_null_is_no_value_of_completions(server: Running, field: str) -> None:
    answer = server.complete("Once upon a time", **{"max_tokens": 2, field: None})
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("functions", []),
        ("function_call", "none"),
        ("tools", []),
        ("tool_choice", "none"),
        ("tool_choice", "auto"),
        ("parallel_tool_calls", True),
        ("response_format", {"type": "text"}),
        ("modalities", ["text"]),
        ("metadata", {"run": "1"}),
        ("safety_identifier", "u1"),
        ("prompt_cache_key", "k"),
        ("prompt_cache_retention", "24h"),
        ("prompt_cache_options", {}),
        ("user", "u1"),
        ("service_tier", "auto"),
        ("store", False),
        ("verbosity", "medium"),
        ("reasoning_effort", "none"),
        ("logprobs", False),
        ("n", 1),
        ("logit_bias", {}),
        ("stop", []),
        ("stop", ["never said"]),
        ("max_completion_tokens", 2),
    ],
)
def test_values_that_change_nothing(server: Running, field: str, value: Any) -> None:
    answer = post(server, **{field: value})
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"] == post(server).json()["choices"][0]["message"]


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("functions", [{"name": "f"}], "does not serve tools"),
        ("function_call", {"name": "f"}, "does not serve tools"),
        ("tool_choice", "required", "does not serve tools"),
        ("response_format", {"type": "json_object"}, "plain text only"),
        ("modalities", ["text", "audio"], "plain text only"),
        ("audio", {"voice": "alloy", "format": "wav"}, "plain text only"),
        ("prediction", {"type": "content", "content": "x"}, "predicted"),
        ("store", True, "does not store"),
        ("service_tier", "priority", "one tier"),
        ("web_search_options", {}, "search the web"),
        ("verbosity", "high", "no such setting"),
        ("reasoning_effort", "high", "reasons"),
        ("moderation", {}, "moderation"),
    ],
)
def test_values_that_would_change_something(server: Running, field: str, value: Any, reason: str) -> None:
    error = post(server, **{field: value}).json()["error"]
    assert error["param"] == field and reason in error["message"], error


# -- the history --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        {"refusal": None, "annotations": None, "audio": None, "function_call": None, "tool_calls": None},
        {"refusal": None, "annotations": [], "tool_calls": []},
        {"reasoning": None, "reasoning_content": None},
        {"reasoning_content": "Let me think."},
        {"name": "assistant"},
        {"parsed": None, "provider_specific_fields": None, "inferaligner": {"open": False}},
        {"content": [{"type": "text", "text": "Hi."}]},
    ],
    ids=str,
)
def test_answers_come_back(server: Running, fields: dict[str, Any]) -> None:
    """The model is shown the same as without these fields."""
    bare = {"role": "assistant", "content": "Hi."}
    found = [
        post(server, messages=[TURN, answer, {"role": "user", "content": "And now?"}])
        for answer in (bare, {**bare, **fields})
    ]
    assert found[1].status_code == 200, found[1].text
    assert [each.json()["usage"] for each in found] == [found[0].json()["usage"]] * 2
    assert found[0].json()["inferaligner"] == found[1].json()["inferaligner"]


def test_an_answer_that_refused_is_read(server: Running) -> None:
    said = {"role": "assistant", "content": "I cannot help with that."}
    told = [
        {"role": "assistant", "content": None, "refusal": said["content"]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": said["content"]}]},
    ]
    scores = [
        post(server, messages=[TURN, answer, TURN]).json()["inferaligner"]["score"]
        for answer in (said, *told)
    ]
    assert scores == [scores[0]] * 3
    empty = post(server, messages=[TURN, {"role": "assistant", "content": None, "tool_calls": []}, TURN])
    assert empty.status_code == 200
    for role in ("user", "system"):
        error = post(server, messages=[{"role": role, "content": None}]).json()["error"]
        assert error["message"] == f"messages.0.content: The {role}'s turn has no content."


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant"])
def test_parts_and_cache_marks(server: Running, role: str) -> None:
    part = {"type": "text", "text": "Hello", "cache_control": {"type": "ephemeral"}}
    turn = {"role": role, "content": [part, {"type": "text", "text": " there"}], "name": "someone"}
    answer = post(server, messages=[turn, TURN] if role != "user" else [turn])
    assert answer.status_code == 200, answer.text


# -- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"stop": [""]}, "stop.0", "The text is empty; expected at least 1 character."),
        ({"stop": ""}, "stop", "The text is empty; expected at least 1 character."),
        ({"stop": 5}, "stop", "Expected a text, or a list of texts."),
        ({"stop": ["a"] * 17}, "stop", "The list has 17 entries; expected at most 16 entries."),
        ({"messages": []}, "messages", "The list is empty; expected at least 1 entry."),
        (
            {"messages": [{**TURN, "content": []}]},
            "messages.0.content",
            "The list is empty; expected at least 1 entry.",
        ),
        (
            {"messages": [{**TURN, "content": 5}]},
            "messages.0.content",
            "Expected a text, or a list of parts.",
        ),
        (
            {"messages": [{**TURN, "content": [{"type": "text", "text": 5}]}]},
            "messages.0.content.0.text",
            "Input should be a valid string.",
        ),
        ({"messages": [{**TURN, "content": [{"type": "text"}]}]}, "messages.0.content.0.text", "required"),
        ({"messages": [{**TURN, "content": ["hi"]}]}, "messages.0.content.0", "Expected a part of type text"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "The user's turn has no content."),
        ({"messages": [{**TURN, "role": "robot"}]}, "messages.0.role", "Input should be"),
        (
            {"messages": [{**TURN, "refusal": "No."}]},
            "messages.0.refusal",
            "Only the assistant's turns have refusal.",
        ),
        (
            {"messages": [{**TURN, "content": [{"type": "text", "text": "hi", "colour": 1}]}]},
            "messages.0.content.0.colour",
            "Unknown field 'messages.0.content.0.colour'",
        ),
        ({"messages": [{**TURN, "<text>": 1}]}, "messages.0.<text>", "Unknown field 'messages.0.<text>'"),
        (
            {"stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "obfuscate",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_errors_name_the_field_as_it_was_written(
    server: Running, fields: dict[str, Any], param: str, message: str
) -> None:
    answer = post(server, **fields)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["param"] == param
    assert message in error["message"] and param in error["message"]
    assert not any(
        mark in error["message"] for mark in ("union", "function-", "constrained", "list[", "Part]")
    )


@pytest.mark.parametrize(
    ("prompt", "param", "message"),
    [
        (5, "prompt", "Expected a text, a list of texts, or token ids."),
        ([], "prompt", "The list is empty"),
        ([[]], "prompt.0", "The list is empty"),
        (["a", 5], "prompt.1", "valid string"),
        ([1, "a"], "prompt.1", "valid integer"),
        ([1, -1], "prompt.1", "greater than or equal to 0"),
        ([[1, -1]], "prompt.0.1", "greater than or equal to 0"),
    ],
    ids=str,
)
def test_errors_of_prompts(server: Running, prompt: Any, param: str, message: str) -> None:
    error = server.complete(prompt).json()["error"]
    assert error["param"] == param and message in error["message"]


# -- browsers and probes ------------------------------------------------------------------------------------

PREFLIGHT = {
    "origin": "http://localhost:3000",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}


def test_browsers_are_let_in_where_the_operator_says_so(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-1 /v1")
    running = serve(
        settings={"allow_origins": ("http://localhost:3000",)}, keys=ApiKeys.read(tmp_path / "keys")
    )
    asked = running.client.options("/v1/chat/completions", headers=PREFLIGHT)
    assert asked.status_code == 200
    assert asked.headers["access-control-allow-origin"] == PREFLIGHT["origin"]
    assert "authorization" in asked.headers["access-control-allow-headers"].lower()
    for key, status in (("sk-1", 200), ("wrong", 401)):
        answer = running.client.post(
            "/v1/chat/completions",
            json={"messages": [TURN], "max_tokens": 1},
            headers={"origin": PREFLIGHT["origin"], "AUTHORIZATION": f"bearer {key}"},
        )
        assert answer.status_code == status
        assert answer.headers["access-control-allow-origin"] == PREFLIGHT["origin"]
    assert answer.headers["access-control-expose-headers"].lower() == "x-inferaligner-open"
    other = running.client.options("/v1/chat/completions", headers={**PREFLIGHT, "origin": "http://other"})
    assert other.status_code == 400 and "access-control-allow-origin" not in other.headers


def test_browsers_are_not_let_in_by_default(server: Running) -> None:
    asked = server.client.options("/v1/chat/completions", headers=PREFLIGHT)
    assert asked.status_code == 405 and "access-control-allow-origin" not in asked.headers
    answer = server.client.get("/v1/models", headers={"origin": PREFLIGHT["origin"]})
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/inferaligner", "/", "/openapi.json"])
def test_head_is_get_without_the_body(server: Running, path: str) -> None:
    head, get = server.client.head(path), server.client.get(path)
    assert head.status_code == get.status_code == 200 and head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert server.client.head("/v1/chat/completions").status_code == 405


def test_a_slash_at_the_end_is_no_other_path(server: Running, serve: Serve, tmp_path: Path) -> None:
    assert server.client.get("/v1/models/").json() == server.client.get("/v1/models").json()
    assert server.client.get("/v1/models/tiny/").json()["id"] == "tiny"
    assert server.client.get("/health/").status_code == 200
    answer = server.client.post("/v1/chat/completions/", json={"messages": [TURN], "max_tokens": 1})
    assert answer.status_code == 200
    (tmp_path / "keys").write_text("sk-1 /v1")
    locked = serve(keys=ApiKeys.read(tmp_path / "keys"))
    assert locked.client.get("/v1/models/").status_code == 401
    assert locked.client.get("/metrics/").status_code == 401


@pytest.mark.parametrize("path", ["/v1", "/chat/completions", "/v1/embeddings"])
def test_other_paths_say_where_the_routes_are(server: Running, path: str) -> None:
    answer = server.client.post(path, json={})
    assert answer.status_code == 404 and "/v1/chat/completions" in answer.json()["error"]["message"]


def test_what_is_left_out(server: Running) -> None:
    answer = server.client.post(
        "/v1/chat/completions", content=b'{"messages":[{"role":"user","content":"Hi"}]}'
    )
    assert answer.json()["model"] == "tiny"
    assert server.chat(PROMPTS[0], stream_options=None).status_code == 200
