"""What the front end asks of the engine, and what it hears back.

A *job* is one prompt with `n` answers (*choices*). The engine tells its `listener` in this order: one
`Decided`, any number of `Piece`s of any choice, one `Finished` per choice. Instead of what is outstanding
there may be one `Failed`, after which nothing follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from inferaligner.prompts.encoding import SeenTokens
from inferaligner.server.engine.sampling import Sampling, TokenLogprob
from inferaligner.serving.gate_report import GateReport

FinishReason = Literal["stop", "length", "content_filter"]


@dataclass(frozen=True)
class Prompt:
    """Token ids of a rendered prompt.

    `turn_end` is how many of them lie before an answer that was begun in it (an assistant prefill), or before
    what the template itself writes there; the guidance gate looks there. None where that is the whole, and in
    raw text.
    `seen` are the same tokens with the pictures that belong to them.
    """

    tokens: tuple[int, ...]
    turn_end: int | None = None
    seen: SeenTokens | None = None


@dataclass(frozen=True)
class Decided:
    """The gate has decided; with the log probabilities of the prompt's tokens, where they were asked for."""

    report: GateReport
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Piece:
    """More of one choice: text that is certain by now, and the token that was generated."""

    choice: int
    text: str
    token: int | None
    logprob: TokenLogprob | None = None
    monitor: float | None = None  # its running score at the token before this one, if that was asked for


@dataclass(frozen=True)
class Finished:
    """The end of one choice; `report` tells what became of it."""

    choice: int
    text: str  # what was held back until now
    reason: FinishReason
    report: GateReport
    stop_reason: str | int | None = None


@dataclass(frozen=True)
class Failed:
    """The end of a job. `message` is for the client."""

    message: str
    status: int = 500


Event = Decided | Piece | Finished | Failed
Listener = Callable[[Event], None]
"""Called on the engine's thread; must not block."""


@dataclass(eq=False)
class Job:
    """One prompt to be answered. `strength` replaces the aligner's own where the operator allows that."""

    id: str
    prompt: Prompt
    listener: Listener
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 16
    min_tokens: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # likeliest tokens beside the chosen one; None for no log probabilities
    prompt_logprobs: int | None = None
    strength: float | None = None
    trace: bool = False
    raw: bool = False  # a completion: its text goes on from the prompt's
    cancelled: bool = False
    extra: dict[str, Any] = field(default_factory=dict)  # for the audit log: route, key

    @property
    def columns(self) -> int:
        """Tokens of the longest row that can come of it."""
        return len(self.prompt.tokens) + self.max_tokens
