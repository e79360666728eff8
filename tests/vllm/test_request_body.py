"""Neutral fields of a request do not reach vLLM."""

from __future__ import annotations

import json
from typing import Any

import pytest

from inferaligner.vllm.request_body import normalized_body

TURN = {"role": "user", "content": "Hello"}


def plain(body: dict[str, Any]) -> Any:
    return json.loads(normalized_body(json.dumps(body).encode()))


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": []},
        {"tools": None, "tool_choice": "none"},
        {"tools": [], "tool_choice": "auto"},
        {"functions": [], "function_call": "none"},
        {"n": None, "min_tokens": None, "stream_options": None},
    ],
)
def test_what_says_nothing_is_left_out(extra: dict[str, Any]) -> None:
    assert plain({"messages": [TURN], **extra}) == {"messages": [TURN]}


def test_what_means_something_stays() -> None:
    body = {
        "messages": [TURN, {"role": "assistant", "content": None, "refusal": "No."}],
        "tools": [{"type": "function"}],
        "tool_choice": "auto",
        "temperature": 0,
        "stream": False,
        "stop": [],
    }
    raw = json.dumps(body).encode()
    assert normalized_body(raw) is raw
    answer = {"role": "assistant", "content": None, "name": None, "refusal": None, "tool_calls": []}
    assert plain({"messages": [answer]}) == {
        "messages": [{"role": "assistant", "content": None, "tool_calls": []}]
    }


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[1]", b"3", b'{"messages": 5}', b'{"messages": [5]}'])
def test_other_bodies_are_passed_on(body: bytes) -> None:
    assert normalized_body(body) == body
