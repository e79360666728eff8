"""The prompt in a list of messages: its last user message.

Both public forms are read: `{"role", "content"}`, and ShareGPT's `{"from", "value"}`. A system prompt,
earlier turns and results of tools do not become part of the prompt; `LeftOut` counts the rows that had some,
for a warning.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from inferaligner.errors import InputError

CHAT_COLUMNS = ("messages", "conversations")
"""Columns that hold lists of messages."""

_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
_SYSTEM = ("system", "developer")
_TOOLS = ("tool", "function", "tool_response", "observation", "ipython")


@dataclass
class LeftOut:
    """How many rows of one file held more than their last user message."""

    rows: int = 0
    system: int = 0
    turns: int = 0
    tools: int = 0

    def warning(self, source: str) -> str | None:
        """One paragraph for the user, or None if nothing was left out."""
        counts = {"a system prompt": self.system, "earlier turns": self.turns, "results of tools": self.tools}
        parts = [f"{name} in {_rows(count)}" for name, count in counts.items() if count]
        if not parts:
            return None
        return (
            f"{source}: of {_rows(self.rows)} with messages only the last user message is read as the "
            f"prompt. Left out: {', '.join(parts)}."
            + (" `fit --system TEXT` sets one system prompt for all prompts." if self.system else "")
        )


def last_user_message(messages: Sequence[object], place: str, left_out: LeftOut) -> object:
    """The content of the last user message, text parts joined.

    Args:
        messages: The list of messages.
        place: The row, for error messages.
        left_out: Counts further messages of the row.

    Raises:
        InputError: An element is not a message, no message is the user's, or a part of it is not text.
    """
    turns = [_turn(message, place) for message in messages]
    asked = [number for number, (role, _) in enumerate(turns) if role == "user"]
    if not asked:
        raise InputError(f"{place}: no message of the role 'user' among {len(turns)}")
    last = asked[-1]
    left_out.rows += 1
    left_out.system += any(role in _SYSTEM and content for role, content in turns)
    left_out.turns += any(role not in _SYSTEM for role, _ in turns[:last])
    left_out.tools += any(role in _TOOLS for role, _ in turns[last + 1 :])
    content = turns[last][1]
    return _joined_parts(content, place) if isinstance(content, list) else content


def says_no_more(messages: object, prompt: object) -> bool:
    """Whether a row's messages hold its prompt, or nothing, and at most answers to it."""
    if isinstance(messages, str):
        messages = messages_in(messages, "", surely=False)
    if not isinstance(messages, list) or not all(_is_message(message) for message in messages):
        return True  # no conversation
    turns = [_turn(message, "") for message in messages]
    asked = [(role, content) for role, content in turns if role != "assistant" and content]
    return asked in ([], [("user", prompt)])


def messages_in(text: str, place: str, *, surely: bool) -> object:
    """Reads the messages that a cell holds as JSON; returns the text itself if it holds none.

    Args:
        text: The cell.
        place: The row and column, for error messages.
        surely: Whether the column is one of `CHAT_COLUMNS`. In other columns, only a list in which every
            element is a message counts as messages.

    Raises:
        InputError: `surely`, and the text begins like JSON and cannot be read.
    """
    begins = text.lstrip()
    if not begins.startswith(("[", "{") if surely else "["):
        return text
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not surely:
            return text
        raise InputError(
            f"{place}: expected a list of messages in JSON, and the text is not JSON ({error}); "
            "write the column with json.dumps, or put the prompts into a column 'prompt'"
        ) from None
    if surely or (isinstance(value, list) and value and all(_is_message(item) for item in value)):
        return value
    return text


def _is_message(item: object) -> bool:
    return isinstance(item, dict) and ({"role", "content"} <= set(item) or {"from", "value"} <= set(item))


def _turn(message: object, place: str) -> tuple[str, object]:
    if not isinstance(message, dict) or not _is_message(message):
        raise InputError(f"{place}: a list, expected a string or messages with role and content")
    role, content = ("role", "content") if "role" in message and "content" in message else ("from", "value")
    name = str(message[role]).lower()
    return _ROLES.get(name, name), message[content]


def _joined_parts(parts: Sequence[object], place: str) -> str:
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    if len(texts) != len(parts) or not all(isinstance(text, str) for text in texts):
        raise InputError(f"{place}: the message has parts that are not text; only text prompts are read")
    return "".join(str(text) for text in texts)


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"
