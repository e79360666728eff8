"""Jobs, which the HTTP routes give to the engine, and the events that the engine sends back.

A *job* is one prompt with `n` answers (*choices*). The engine calls the job's `listener` with
one `Decided`, then any number of `Piece`s of any choice, and one `Finished` per choice. `Failed` may come at
any time; no event follows it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from inferaligner.prompts.encoding import SeenTokens
from inferaligner.server.engine.sampling import Sampling, TokenLogprob
from inferaligner.server_shared.gate_report import GateReport

FinishReason = Literal["stop", "length", "content_filter"]


@dataclass(frozen=True)
class EnginePrompt:
    """Token ids of a rendered prompt.

    Attributes:
        tokens: token ids.
        turn_end: number of tokens before a begun answer (an assistant prefill) or before text that the chat
            template writes in its place; the guidance gate reads there. None where the prompt has neither,
            and for raw text.
        seen: the same tokens with their pictures.
    """

    tokens: tuple[int, ...]
    turn_end: int | None = None
    seen: SeenTokens | None = None


@dataclass(frozen=True)
class Decided:
    """The gate's decision, and the log probabilities of the prompt's tokens where the job requests them."""

    report: GateReport
    prompt_logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Piece:
    """One generated token of a choice, and the text that can be released after it."""

    choice: int
    text: str
    token: int | None
    logprob: TokenLogprob | None = None
    monitor: float | None = None  # its running score at the token before, where the job has `trace`


@dataclass(frozen=True)
class Finished:
    """The end of one choice. `report` is the decision, updated where a monitor opened the answer."""

    choice: int
    text: str  # released only now
    reason: FinishReason
    report: GateReport
    stop_reason: str | int | None = None


@dataclass(frozen=True)
class Failed:
    """The end of a job by an error. `message` and `status` go to the client."""

    message: str
    status: int = 500


Event = Decided | Piece | Finished | Failed
Listener = Callable[[Event], None]
"""Receives the events of a job. Called on the engine's thread; must not block."""


@dataclass(eq=False)
class Job:
    """One prompt to answer. `strength` replaces the aligner's α where the operator allows that."""

    id: str
    prompt: EnginePrompt
    listener: Listener
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 16
    min_tokens: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None  # number of likeliest tokens to report; None for no log probabilities
    prompt_logprobs: int | None = None
    strength: float | None = None
    trace: bool = False
    raw: bool = False  # a raw completion: its text continues the prompt's text
    cancelled: bool = False

    @property
    def columns(self) -> int:
        """Largest number of tokens that prompt and answer can have together."""
        return len(self.prompt.tokens) + self.max_tokens
