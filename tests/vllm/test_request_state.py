"""The scheduler's rules for one request: which blocks it may share, and where steering begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inferaligner.errors import SteeringError
from inferaligner.method.decision import Decision
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.prompts.template_ends import PromptEnd
from inferaligner.steering.plan import SteeringPlan
from inferaligner.vllm.monitor_state import MonitoredAnswer
from inferaligner.vllm.request_state import GatedRequest, GateRules

OPEN, CLOSED = Decision(1.0, True), Decision(-1.0, False)
LENGTH = 40
LAST = LENGTH - 1


MONITOR = AnswerMonitor("test", 2, 3, torch.ones(4), 0.0, 0.0)


def rules(
    positions: Any = "from_gate",
    *,
    below: bool = False,
    steers: bool = True,
    refuses: bool = False,
    monitor: AnswerMonitor | None = None,
) -> GateRules:
    gate = GuidanceGate("whitened", (GateRead(2, 0), GateRead(2, 5)), torch.ones(2, 4), 0.0)
    plan = SteeringPlan(gate, {0 if below else 3: torch.ones(4)}, positions, monitor)
    return GateRules(plan, steers=steers, refuses=refuses)


@pytest.mark.parametrize(
    ("made", "decision", "readable", "writable", "order"),
    [
        (rules(), None, LAST - 5, LAST, (None, LAST)),
        (rules(), OPEN, LAST, LAST, (True, LAST)),
        (rules(), CLOSED, None, None, (False, LAST)),
        (rules("all"), None, LAST - 5, LAST, (None, LENGTH)),
        (rules("all"), OPEN, 0, 0, (True, 0)),
        (rules("all"), CLOSED, None, None, (False, 0)),
        (rules(below=True), None, LAST - 5, LAST, (None, LENGTH)),
        (rules(below=True), OPEN, LAST, LAST, (True, LAST)),
        (rules(steers=False), None, LAST - 5, None, (None, LAST)),
        (rules(steers=False), OPEN, None, None, (False, LAST)),
    ],
)
def test_limits_and_orders(
    made: GateRules,
    decision: Decision | None,
    readable: int | None,
    writable: int | None,
    order: tuple[bool | None, int],
) -> None:
    request = GatedRequest(LENGTH, decision)
    assert made.readable(request) == readable
    assert made.writable(request) == writable
    given = made.order(request)
    assert (given.open, given.steer_from) == order
    assert given.admission == request.admission
    assert made.order(request).admission != given.admission


def test_when_a_second_prefill_is_needed() -> None:
    assert not rules().replays
    assert rules("all").replays and rules(below=True).replays
    assert not rules("all", steers=False).replays and not rules("all", refuses=True).replays


@pytest.mark.parametrize("positions", ["from_gate", "all"])
def test_limits_with_a_monitor(positions: Any) -> None:
    """What it has not read yet may turn out to be steered, and what it opened is steered from there on."""
    made, request = rules(positions, monitor=MONITOR), GatedRequest(LENGTH)
    assert made.readable(request) == LAST - 5 and made.writable(request) == LAST
    assert made.next_token(request, LENGTH) is None
    request.decision = CLOSED
    for number, over in enumerate((False, False, True), start=1):
        assert made.readable(request) == made.writable(request) == LENGTH + number - 1
        assert made.next_token(request, LENGTH + number) == number
        assert made.next_token(request, LENGTH + number) is None  # the same step is not sent out twice
        assert request.answer.record(number, float(number), over) == over
    assert made.readable(request) == made.writable(request) == LENGTH + 2
    assert made.next_token(request, LENGTH + 4) is None
    order = made.order(request, 5)
    assert (order.open, order.steer_from) == (True, LENGTH + 2)
    shadow = rules(positions, monitor=MONITOR, steers=False)
    assert shadow.writable(request) is None and shadow.order(request, 5).open is False


def test_a_request_goes_on_where_the_monitor_was() -> None:
    made, request = rules(monitor=MONITOR), GatedRequest(LENGTH, CLOSED)
    for number in range(1, 6):
        made.next_token(request, LENGTH + number)
        request.answer.record(number, float(number), False)
    order = made.order(request, 5)
    assert (order.open, order.steer_from, order.recent_scores, order.tokens_read) == (
        False,
        LENGTH + 5,
        (3.0, 4.0, 5.0),
        5,
    )
    # Two tokens that were on their way are thrown away, and so is what was read of them.
    order = made.order(request, 3)
    assert (order.recent_scores, order.tokens_read, order.steer_from) == ((1.0, 2.0, 3.0), 3, LENGTH + 3)
    assert made.next_token(request, LENGTH + 4) == 4
    with pytest.raises(SteeringError, match="reads one per step"):
        made.next_token(request, LENGTH + 6)


def test_an_opening_by_a_token_that_is_thrown_away_is_void() -> None:
    answer = MonitoredAnswer()
    assert not answer.record(1, -1.0, False) and answer.record(2, 1.0, True) and answer.opened_at == 2
    answer.resume(2)
    assert answer.opened_at == 2
    answer.resume(1)
    assert answer.opened_at is None and answer.scores == [-1.0]
    assert not answer.record(3, 1.0, True)  # late: it is about another token


def test_a_begun_answer_limits_reads_at_both_gates() -> None:
    gate = GuidanceGate("whitened", (GateRead(0, 0), GateRead(0, 5)), torch.ones(2, 4), 0.0)
    ends = EndGate(GuidanceGate("test", (GateRead(0, 1),), torch.ones(1, 4), 0.0), 0.5, -0.5)
    plan = SteeringPlan(gate, {3: torch.ones(4)}, end_gate=ends)
    made = GateRules(plan, steers=True)
    assert made.readable(GatedRequest(12, end=PromptEnd("begun", 10))) == 4
    assert made.readable(GatedRequest(12, end=PromptEnd("raw"))) == 6
