"""Tokens to text, one token at a time.

Only whole characters are released, and no text that may be the beginning of a stop text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_CONTEXT = 6
_UNFINISHED = "�"  # what a tokenizer writes for the first bytes of a character


class TextStream:
    """The text of one answer while it is generated."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        """Starts an answer.

        Args:
            tokenizer: of the model.
            stops: stop texts; the answer ends before the first of them.
            before: tokens that precede the answer (some tokenizers write a word differently at the beginning
                of a text).
        """
        self.stopped_by: str | None = None
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ids = list(before[-_CONTEXT:])
        self._prefix, self._read = 0, len(self._ids)
        self._held = ""

    def push(self, token: int) -> str:
        """Adds a token; returns the text that can be released now."""
        self._ids.append(token)
        known = self._decode(self._ids[self._prefix : self._read])
        whole = self._decode(self._ids[self._prefix :])
        if whole.endswith(_UNFINISHED) or len(whole) <= len(known):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return self._release(whole[len(known) :])

    def finish(self) -> str:
        """Returns the text that was held back. Called after the last token."""
        if self.stopped_by is not None:
            return ""
        known = self._decode(self._ids[self._prefix : self._read])
        rest = self._release(self._decode(self._ids[self._prefix :])[len(known) :])
        self._prefix = self._read = len(self._ids)
        if self.stopped_by is not None:
            return rest
        rest, self._held = rest + self._held, ""
        return rest

    def _release(self, fresh: str) -> str:
        text = self._held + fresh
        matches = [(text.find(stop), stop) for stop in self._stops if stop in text]
        if matches:
            at, self.stopped_by = min(matches)
            self._held = ""
            return text[:at]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""


def _overlap(text: str, stop: str) -> int:
    """The length of the longest suffix of `text` that is a prefix of `stop`."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
