"""The scheduler's book: what is known about the gate of every request."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from inferaligner.errors import SteeringError
from inferaligner.method.decision import Decision
from inferaligner.prompts.template_ends import AS_THE_TEMPLATE, PromptEnd
from inferaligner.steering.plan import SteeringPlan
from inferaligner.vllm.monitor_state import ReadAnswer
from inferaligner.vllm.protocol import Order

_TICKETS = itertools.count(1)


@dataclass
class GatedRequest:
    """One request, from the time it is added until it is freed.

    Attributes:
        prompt_length: tokens of the prompt.
        decision: None until the gate has said.
        ticket: of the present stay on the workers; renewed whenever an order is sent.
        replays: whether an open gate means that tokens which were computed without steering must be computed
            again.
        refused: why the request is not served at all, if so.
        again: it was sent back to be computed a second time, and has not begun yet.
        report: what is told about it, once it is decided.
        answer: what a monitor has read.
        end: how the prompt ends, and where the template handed over to the assistant.
    """

    prompt_length: int
    decision: Decision | None = None
    ticket: int = 0
    replays: bool = False
    refused: str | None = None
    again: bool = False
    report: dict[str, Any] | None = None
    answer: ReadAnswer = field(default_factory=ReadAnswer)
    end: PromptEnd = AS_THE_TEMPLATE

    @property
    def closed(self) -> bool:
        """Whether the gate has closed, and no monitor opened the answer since."""
        return self.decision is not None and not self.decision.open and self.answer.opened_at is None


@dataclass
class GateRules:
    """What follows from a plan for one request. `steers` is False in shadow mode."""

    plan: SteeringPlan
    steers: bool
    refuses: bool = False
    reach: int = field(init=False)

    def __post_init__(self) -> None:
        self.reach = max(self.plan.gate.offsets)
        self._end_reach = max(self.plan.ends.gate.offsets)

    @property
    def replays(self) -> bool:
        """Whether steering cannot begin in the pass that decides: every position is steered, or a steered
        layer lies below the gate's last one."""
        return (
            self.steers
            and not self.refuses
            and not (self.plan.positions == "from_gate" and self.plan.one_pass)
        )

    @property
    def window(self) -> int:
        """Of the monitor; 0 where no answer is read."""
        return 0 if self.plan.monitor is None else self.plan.monitor.window

    def first_steered(self, request: GatedRequest) -> int:
        """First position that is steered, if the gate is open."""
        if request.answer.opened_at is not None:
            return request.prompt_length + request.answer.opened_at - 1
        return 0 if self.plan.positions == "all" else request.prompt_length - 1

    def order(self, request: GatedRequest, generated: int = 0) -> Order:
        """For a request that begins or resumes with so many generated tokens; draws a new ticket."""
        request.ticket = next(_TICKETS)
        answer = request.answer
        answer.begin(generated)
        steer_from = self.first_steered(request)
        if request.decision is None and self.replays:
            # The pass that decides must not be half steered: it is run again if the gate opens.
            steer_from = request.prompt_length
        if request.closed and self.window:
            steer_from = request.prompt_length + len(answer.scores)  # the next token that may open it
        decided = None if request.decision is None else not request.closed and self.steers
        again, request.again = request.again, False
        heard = answer.latest(self.window) if self.window else ()
        return Order(
            request.ticket,
            request.prompt_length,
            decided,
            steer_from,
            again,
            heard,
            len(answer.scores),
            request.end,
        )

    def next_token(self, request: GatedRequest, computed: int) -> int | None:
        """The generated token that the monitor reads in a step after which `computed` tokens are computed.

        Raises `SteeringError` if the step computes several: none may be passed by.
        """
        number, answer = computed - request.prompt_length, request.answer
        undecided = request.decision is None
        if not self.window or number <= answer.sent or not (undecided or request.closed):
            return None
        if number != answer.sent + 1:
            raise SteeringError(
                f"A step computes generated tokens {answer.sent + 1} to {number} of a request; the monitor "
                "reads one a step. Stopping rather than serving without the monitor; please report this."
            )
        answer.sent = number
        return number

    def readable(self, request: GatedRequest) -> int | None:
        """Leading tokens whose blocks may come from the prefix cache; None for all."""
        if request.decision is None:
            turn = request.prompt_length if request.end.turn_end is None else request.end.turn_end
            first = turn - 1 - self.reach
            if request.end.kind != "template":
                first = min(first, request.prompt_length - 1 - self._end_reach)
            return max(first, 0)
        return self._shared(request)

    def writable(self, request: GatedRequest) -> int | None:
        """Leading tokens whose blocks may go into the prefix cache; None for all."""
        if self.steers and request.decision is None:
            # Not yet steered whatever the gate will say: a replay computes them again in other blocks.
            return request.prompt_length - 1
        return self._shared(request)

    def _shared(self, request: GatedRequest) -> int | None:
        if not self.steers:
            return None
        if not request.closed:
            return self.first_steered(request)
        # What the monitor has not read yet may turn out to be steered.
        return request.prompt_length + len(request.answer.scores) if self.window else None
