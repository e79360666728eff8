"""Requests as OpenAI's clients write them, for a vLLM that takes less than they send.

A field that is null, or that says what is so without it, is left out before vLLM reads the request: vLLM
refuses `"tools": []`, `"tool_choice": "auto"` without tools, and null for some of its own fields. Nothing
else of a request changes.
"""

from __future__ import annotations

import json
from typing import Any

ROUTES = ("/v1/chat/completions", "/v1/completions")
_NEUTRAL: dict[str, tuple[Any, ...]] = {"tools": ([],), "functions": ([],), "function_call": ("none", "auto")}
_WITHOUT_TOOLS = ("none", "auto")


def plain_body(body: bytes) -> bytes:
    """The body of a request to one of `ROUTES` without what says nothing; any other body as it is."""
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        return body
    if not isinstance(given, dict):
        return body
    kept = {
        name: value
        for name, value in given.items()
        if value is not None and not any(value == each for each in _NEUTRAL.get(name, ()))
    }
    if "tools" not in kept and kept.get("tool_choice") in _WITHOUT_TOOLS:
        del kept["tool_choice"]
    if isinstance(messages := kept.get("messages"), list):
        kept["messages"] = [_plain_message(message) for message in messages]
    return body if kept == given else json.dumps(kept).encode()


def _plain_message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    # An answer without content is a message of its own kind; every other null says nothing.
    return {name: value for name, value in message.items() if value is not None or name == "content"}
