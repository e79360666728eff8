"""The messages between scheduler and workers: one in each direction per step.

The scheduler attaches `StepOrders` to its `SchedulerOutput`, and the worker attaches `StepDecisions` to its
`ModelRunnerOutput`. Each is an attribute of vLLM's object, and every executor transports that object whole.

An *admission* is one stay of a request on the workers; its number identifies it. A request that is preempted
before it was decided gets a new admission when it resumes, so a late decision of the old one is not taken for
a decision of the new one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from inferaligner.method.decision import Decision
from inferaligner.prompts.template_ends import AS_THE_TEMPLATE, PromptEnd

_ATTRIBUTE = "inferaligner"


@dataclass(frozen=True)
class Order:
    """How the workers treat a request that begins, or that resumes after a preemption.

    Attributes:
        admission: number of this admission.
        prompt_length: tokens of the prompt; the gate decides at the last one.
        open: the decision if it is known; None requests it from the worker.
        steer_from: first position that is steered if the gate is open.
        replayed: the prompt is computed a second time because the gate opened; the output of the first time
            was dropped.
        recent_scores: the monitor's scores of the latest generated tokens, oldest first.
        tokens_read: generated tokens that the monitor has read in all.
        end: how the prompt ends, and where the chat template hands over to the assistant.
    """

    admission: int
    prompt_length: int
    open: bool | None
    steer_from: int
    replayed: bool = False
    recent_scores: tuple[float, ...] = ()
    tokens_read: int = 0
    end: PromptEnd = AS_THE_TEMPLATE


@dataclass
class StepOrders:
    """The scheduler's message for one step. The keys are request ids.

    Attributes:
        orders: for requests that begin or resume in this step.
        due: admissions of the requests that must be decided in this step.
        closed: admissions of the requests whose gate has turned out closed. The device knows this already;
            the worker's host stops marking their rows. Not sent while a monitor may still open them.
        watched: admissions, and numbers of the generated tokens that the monitor must read in this step.
    """

    orders: dict[str, Order] = field(default_factory=dict)
    due: dict[str, int] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)
    watched: dict[str, tuple[int, int]] = field(default_factory=dict)


@dataclass(frozen=True)
class TokenDecision:
    """The monitor's result for one generated token.

    Attributes:
        number: of the token in the answer, from 1.
        score: of this token.
        opens: whether the mean of the latest scores is above the threshold.
    """

    number: int
    score: float
    opens: bool


@dataclass(frozen=True)
class StepDecisions:
    """The worker's message for one step: the gate's and the monitor's results, by admission."""

    decisions: dict[int, Decision] = field(default_factory=dict)
    tokens: dict[int, TokenDecision] = field(default_factory=dict)


def attach(message: StepOrders | StepDecisions, carrier: Any) -> None:
    """Attaches a message to an object of vLLM."""
    setattr(carrier, _ATTRIBUTE, message)


def attached_orders(scheduler_output: Any) -> StepOrders | None:
    """The scheduler's message; None if the scheduler does not belong to this package."""
    return getattr(scheduler_output, _ATTRIBUTE, None)


def attached_decisions(runner_output: Any) -> StepDecisions:
    """The worker's message; an empty one if nothing was decided."""
    return getattr(runner_output, _ATTRIBUTE, None) or StepDecisions()
