"""Makes requests of OpenAI's clients acceptable to vLLM, which rejects some fields that they send.

Fields that are null or only repeat the default are removed before vLLM reads the request: vLLM rejects
`"tools": []`, `"tool_choice": "auto"` without tools, and null for some fields. The rest of a request stays
unchanged.
"""

from __future__ import annotations

import json
from typing import Any

ROUTES = ("/v1/chat/completions", "/v1/completions")
_NEUTRAL: dict[str, tuple[Any, ...]] = {"tools": ([],), "functions": ([],), "function_call": ("none", "auto")}
_WITHOUT_TOOLS = ("none", "auto")


def normalized_body(body: bytes) -> bytes:
    """The body of a request to one of `ROUTES` without neutral fields; unchanged if it is no JSON object."""
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
        kept["messages"] = [_normalized_message(message) for message in messages]
    return body if kept == given else json.dumps(kept).encode()


def _normalized_message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    # A null content has a meaning (a message of tool calls); every other null is neutral.
    return {name: value for name, value in message.items() if value is not None or name == "content"}
