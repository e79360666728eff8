"""The scheduler's state of every request, and the rules that follow from it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from inferaligner.errors import SteeringError
from inferaligner.method.decision import Decision
from inferaligner.prompts.template_ends import AS_THE_TEMPLATE, PromptEnd
from inferaligner.steering.plan import SteeringPlan
from inferaligner.vllm.monitor_state import MonitoredAnswer
from inferaligner.vllm.protocol import Order

_ADMISSIONS = itertools.count(1)


@dataclass
class GatedRequest:
    """One request, from `add_request` until it is freed.

    Attributes:
        prompt_length: tokens of the prompt.
        decision: None until the gate has decided.
        admission: number of the present admission to the workers; renewed with every order.
        refused: the reason why the request is not served; None if it is served.
        replaying: the request was sent back for a second prefill, which has not begun yet.
        report: the report on it, once it is decided.
        answer: the monitor's state.
        end: how the prompt ends, and where the chat template hands over to the assistant.
    """

    prompt_length: int
    decision: Decision | None = None
    admission: int = 0
    refused: str | None = None
    replaying: bool = False
    report: dict[str, Any] | None = None
    answer: MonitoredAnswer = field(default_factory=MonitoredAnswer)
    end: PromptEnd = AS_THE_TEMPLATE

    @property
    def closed(self) -> bool:
        """Whether the gate decided to stay closed and the monitor has not opened the answer since."""
        return self.decision is not None and not self.decision.open and self.answer.opened_at is None


@dataclass
class GateRules:
    """Orders, prefix-cache limits and monitor reads that follow from a plan and a request's state.

    Attributes:
        plan: the gates, the monitor and the steered positions.
        steers: False in shadow mode.
        refuses: requests whose gate opens end without an answer.
    """

    plan: SteeringPlan
    steers: bool
    refuses: bool = False

    def __post_init__(self) -> None:
        self._longest_offset = max(self.plan.gate.offsets)
        self._longest_end_offset = max(self.plan.ends.gate.offsets)

    @property
    def replays(self) -> bool:
        """Whether an opened request is prefilled a second time, because steering cannot begin in the pass
        that decides: every position is steered, or a steered layer lies below the gate's last one."""
        one_pass = self.plan.positions == "from_gate" and self.plan.one_pass
        return self.steers and not self.refuses and not one_pass

    @property
    def window(self) -> int:
        """Number of token scores that the monitor averages; 0 without a monitor."""
        return 0 if self.plan.monitor is None else self.plan.monitor.window

    def first_steered(self, request: GatedRequest) -> int:
        """First position that is steered if the gate is open."""
        if request.answer.opened_at is not None:
            return request.prompt_length + request.answer.opened_at - 1
        return 0 if self.plan.positions == "all" else request.prompt_length - 1

    def order(self, request: GatedRequest, generated: int = 0) -> Order:
        """The order for a request that begins or resumes with `generated` tokens; starts a new admission."""
        request.admission = next(_ADMISSIONS)
        answer = request.answer
        answer.resume(generated)
        steer_from = self.first_steered(request)
        if request.decision is None and self.replays:
            # The pass that decides must not be partly steered: it is run again if the gate opens.
            steer_from = request.prompt_length
        if request.closed and self.window:
            steer_from = request.prompt_length + len(answer.scores)  # the next token that may open it
        replayed, request.replaying = request.replaying, False
        return Order(
            admission=request.admission,
            prompt_length=request.prompt_length,
            open=None if request.decision is None else not request.closed and self.steers,
            steer_from=steer_from,
            replayed=replayed,
            recent_scores=tuple(answer.scores[-self.window :]) if self.window else (),
            tokens_read=len(answer.scores),
            end=request.end,
        )

    def next_token(self, request: GatedRequest, computed: int) -> int | None:
        """The generated token that the monitor reads in a step.

        Args:
            request: the request.
            computed: its tokens that are computed after the step, prompt included.

        Returns:
            The token's number in the answer, from 1; None if there is nothing to read.

        Raises:
            SteeringError: the step computes several generated tokens, so one would be left out.
        """
        number, answer = computed - request.prompt_length, request.answer
        undecided = request.decision is None
        if not self.window or number <= answer.requested or not (undecided or request.closed):
            return None
        if number != answer.requested + 1:
            raise SteeringError(
                f"A step computes generated tokens {answer.requested + 1} to {number} of a request; the "
                "monitor reads one per step. Stopping rather than serving without the monitor; please report "
                "this."
            )
        answer.requested = number
        return number

    def readable(self, request: GatedRequest) -> int | None:
        """Number of leading tokens whose blocks may be read from the prefix cache; None for all."""
        if request.decision is None:
            turn = request.prompt_length if request.end.turn_end is None else request.end.turn_end
            first = turn - 1 - self._longest_offset
            if request.end.kind != "template":
                first = min(first, request.prompt_length - 1 - self._longest_end_offset)
            return max(first, 0)
        return self._shareable(request)

    def writable(self, request: GatedRequest) -> int | None:
        """Number of leading tokens whose blocks may be written to the prefix cache; None for all."""
        if self.steers and request.decision is None:
            # Not steered yet, whatever the gate decides: a replay computes them again in other blocks.
            return request.prompt_length - 1
        return self._shareable(request)

    def _shareable(self, request: GatedRequest) -> int | None:
        if not self.steers:
            return None
        if not request.closed:
            return self.first_steered(request)
        # Tokens that the monitor has not read yet may turn out to be steered.
        return request.prompt_length + len(request.answer.scores) if self.window else None
