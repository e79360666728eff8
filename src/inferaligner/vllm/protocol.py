"""What scheduler and worker tell each other, one message each way and step.

The scheduler sends `StepOrders` with its own `SchedulerOutput`; the worker sends decisions with its
`ModelRunnerOutput`. Both ride as an attribute of vLLM's object, which every executor passes on whole.
A *ticket* names one stay of a request in the engine: a request that is preempted before it was decided gets a
new one, so that a late answer to the old one cannot be taken for the new one's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inferaligner.method.decision import Decision
from inferaligner.prompts.template_ends import AS_THE_TEMPLATE, PromptEnd

_ATTRIBUTE = "inferaligner"


@dataclass(frozen=True)
class Order:
    """How to treat a request that begins, or resumes after a preemption.

    Attributes:
        ticket: of this stay.
        prompt_length: tokens of the prompt; the gate decides at the last of them.
        open: the decision, where it is known; None asks the worker to decide.
        steer_from: first position that is steered if the gate is open.
        again: the prompt is computed a second time because the gate opened; what the first time gave was
            thrown away.
        heard: the monitor's scores of the last generated tokens that it has read, `read` of them in all.
        end: how the prompt ends, and where the template handed over to the assistant.
    """

    ticket: int
    prompt_length: int
    open: bool | None
    steer_from: int
    again: bool = False
    heard: tuple[float, ...] = ()
    read: int = 0
    end: PromptEnd = AS_THE_TEMPLATE


@dataclass
class StepOrders:
    """One step's message to the workers; all by request id.

    Attributes:
        orders: for what begins or resumes in this step.
        due: tickets of the requests that must be decided in this step.
        closed: tickets of those whose gate has turned out closed. The device knows; the host learns it here
            and stops marking their rows. Not sent while a monitor may still open them.
        watched: tickets, and numbers of the generated tokens that the monitor must read in this step.
    """

    orders: dict[str, Order] = field(default_factory=dict)
    due: dict[str, int] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)
    watched: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenDecision:
    """What the monitor said about a generated token: its score, and whether the mean was over."""

    number: int
    score: float
    over: bool


@dataclass(frozen=True)
class StepDecisions:
    """Decisions of one step, and what the monitor read in it, by ticket."""

    decisions: dict[int, Decision] = field(default_factory=dict)
    tokens: dict[int, TokenDecision] = field(default_factory=dict)


def send(message: StepOrders | StepDecisions, carrier: Any) -> None:
    """Puts a message on vLLM's own object."""
    setattr(carrier, _ATTRIBUTE, message)


def orders_on(scheduler_output: Any) -> StepOrders | None:
    """The scheduler's message, or None if the scheduler is not this package's."""
    return getattr(scheduler_output, _ATTRIBUTE, None)


def decisions_on(runner_output: Any) -> StepDecisions:
    """The worker's message; empty if nothing was decided."""
    return getattr(runner_output, _ATTRIBUTE, None) or StepDecisions()
