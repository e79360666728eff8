"""The outcome of a command, for the tests of the command line; the fixture `run` returns it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Outcome]


def refused(outcome: Outcome, *words: str) -> None:
    """Asserts exit code 2 with one message that has `words` in it, on stderr alone, and no traceback."""
    assert outcome.code == 2, (outcome.code, outcome.out, outcome.err)
    assert "Traceback" not in outcome.err
    messages = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(messages) == 1, outcome.err
    for word in words:
        assert word in messages[0], messages[0]
    assert outcome.out == ""
