"""What follows from a plan for one request: which blocks may be shared, where steering begins."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inferaligner.errors import SteeringError
from inferaligner.gate import Decision, GateRead, GuidanceGate
from inferaligner.steering.plan import SteeringPlan
from inferaligner.vllm.messages import Order, StepOrders
from inferaligner.vllm.requests import GatedRequest, GateRules
from inferaligner.vllm.rows import RowBuffers
from inferaligner.vllm.slots import Slots

OPEN, CLOSED = Decision(1.0, True), Decision(-1.0, False)
LENGTH = 40
LAST = LENGTH - 1


def rules(
    positions: Any = "from_gate", *, below: bool = False, steers: bool = True, refuses: bool = False
) -> GateRules:
    gate = GuidanceGate("whitened", (GateRead(2, 0), GateRead(2, 5)), torch.ones(2, 4), 0.0)
    plan = SteeringPlan(gate, {0 if below else 3: torch.ones(4)}, positions)
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
    assert given.ticket == request.ticket
    assert made.order(request).ticket != given.ticket


def test_when_a_second_prefill_is_needed() -> None:
    assert not rules().replays
    assert rules("all").replays and rules(below=True).replays
    assert not rules("all", steers=False).replays and not rules("all", refuses=True).replays


def slots() -> Slots:
    gate = GuidanceGate("whitened", (GateRead(0, 0), GateRead(0, 5)), torch.ones(2, 4), 0.0)
    return Slots(RowBuffers(gate, 2, 64, torch.device("cpu")), steers=True)


def test_rows_of_a_batch() -> None:
    """A prompt in its last chunk, behind a request that decodes and was closed before."""
    held = slots()
    orders = {"new": Order(1, LENGTH, None, LAST), "old": Order(2, 8, True, 7)}
    held.begin_step([], StepOrders(orders, {"new": 1}))
    held.plan(["old", "new"], [20, 30], [1, 10])
    rows = held.buffers
    new, old = held._stays["new"].slot, held._stays["old"].slot
    assert rows.counts.tolist() == [1, 1, 1, 2, 2]  # both are open as yet
    assert rows.read_tokens[0, 0] == 10 and rows.read_tokens[1, 0] == 5
    assert rows.read_slots[:, 0].tolist() == [new, new, new]
    assert rows.slot_of_token[:11].tolist() == [old, *[rows.bin] * 9, new]


def test_a_request_without_orders_stops_the_engine() -> None:
    held = slots()
    held.begin_step([], StepOrders())
    with pytest.raises(SteeringError, match="without an order"):
        held.plan(["stranger"], [0], [3])


def test_a_batch_that_the_gate_did_not_see_stops_the_engine() -> None:
    held = slots()
    held.begin_step([], StepOrders({"a": Order(1, 3, None, 2)}, {"a": 1}))
    with pytest.raises(SteeringError, match="did not see"):
        held.end_step(3)


def test_a_decision_that_was_due_and_not_made_stops_the_engine() -> None:
    held = slots()
    held.begin_step([], StepOrders({"a": Order(1, 9, None, 8)}, {"a": 1}))
    held.plan(["a"], [0], [3])
    with pytest.raises(SteeringError, match="due for a decision"):
        held.end_step(3)


def test_slots_are_used_again_with_nothing_left_in_them() -> None:
    held = slots()
    for number in range(5):
        name = f"r{number}"
        held.begin_step([f"r{number - 1}"], StepOrders({name: Order(number, 3, None, 2)}, {name: number}))
        slot = held._stays[name].slot
        assert bool(held.buffers.open[slot]) and torch.isnan(held.buffers.partial[slot]).all()
        held.plan([name], [0], [3])
        held.buffers.score[slot], held.buffers.open[slot] = -1.0, False
        held.buffers.partial[slot] = -1.0
        pending = held.end_step(3)
        assert pending is not None and pending.arrive() == {number: Decision(-1.0, False)}


def test_more_requests_than_slots_stop_the_engine() -> None:
    held = slots()
    with pytest.raises(SteeringError, match="max_num_seqs"):
        held.begin_step([], StepOrders({str(n): Order(n, 3, None, 2) for n in range(3)}))


def test_rows_of_a_closed_request_are_no_longer_marked() -> None:
    held = slots()
    held.begin_step([], StepOrders({"a": Order(7, 3, None, 2)}, {"a": 7}))
    held.plan(["a"], [0], [3])
    assert held.buffers.counts[held.buffers.steer_row] == 1
    assert held.end_step(3) is not None
    for closed, marked in (({}, 1), ({"a": 6}, 1), ({"a": 7}, 0)):
        held.begin_step([], StepOrders(closed=closed))
        held.plan(["a"], [3], [1])
        assert held.buffers.counts[held.buffers.steer_row] == marked
        held.end_step(1)
