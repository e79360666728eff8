"""What follows from a plan for one request: which blocks may be shared, where steering begins."""

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
from inferaligner.vllm.device_buffers import RowBuffers
from inferaligner.vllm.monitor_state import ReadAnswer
from inferaligner.vllm.protocol import Order, StepDecisions, StepOrders, TokenDecision
from inferaligner.vllm.request_state import GatedRequest, GateRules
from inferaligner.vllm.slots import Slots

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
    assert given.ticket == request.ticket
    assert made.order(request).ticket != given.ticket


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
        assert request.answer.hear(number, float(number), over) == over
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
        request.answer.hear(number, float(number), False)
    order = made.order(request, 5)
    assert (order.open, order.steer_from, order.heard, order.read) == (False, LENGTH + 5, (3.0, 4.0, 5.0), 5)
    # Two tokens that were on their way are thrown away, and so is what was read of them.
    order = made.order(request, 3)
    assert (order.heard, order.read, order.steer_from) == ((1.0, 2.0, 3.0), 3, LENGTH + 3)
    assert made.next_token(request, LENGTH + 4) == 4
    with pytest.raises(SteeringError, match="reads one a step"):
        made.next_token(request, LENGTH + 6)


def test_an_opening_by_a_token_that_is_thrown_away_is_void() -> None:
    answer = ReadAnswer()
    assert not answer.hear(1, -1.0, False) and answer.hear(2, 1.0, True) and answer.opened_at == 2
    answer.begin(2)
    assert answer.opened_at == 2
    answer.begin(1)
    assert answer.opened_at is None and answer.scores == [-1.0]
    assert not answer.hear(3, 1.0, True)  # late: it is about another token


def slots(monitor: AnswerMonitor | None = None) -> Slots:
    gate = GuidanceGate("whitened", (GateRead(0, 0), GateRead(0, 5)), torch.ones(2, 4), 0.0)
    return Slots(RowBuffers(gate, 2, 64, torch.device("cpu"), monitor), steers=True)


def test_rows_that_the_monitor_reads() -> None:
    """A closed request that decodes, and another that comes back with its answer in one chunk."""
    held = slots(MONITOR)
    orders = {
        "decodes": Order(1, 8, False, 12, heard=(1.0, 2.0, 3.0), read=4),
        "back": Order(2, LENGTH, False, LENGTH + 1, heard=(5.0,), read=1),
    }
    held.begin_step([], StepOrders(orders, watched={"decodes": (1, 5), "back": (2, 2)}))
    rows = held.buffers
    one, two = held._stays["decodes"].slot, held._stays["back"].slot
    assert rows.recent[[one, two]].tolist() == [[3.0, 1.0, 2.0], [5.0, 0.0, 0.0]]  # token 4 is in column 0
    held.plan(["decodes", "back"], [12, 30], [1, 12])
    assert rows.watch_rows.tolist() == [[0, 12], [one, two], [1, 1]]
    assert rows.counts[-3:].tolist() == [2, 2, 0]
    assert rows.slot_of_token[:13].tolist() == [one, *[rows.bin] * 11, two]
    rows.token_score[[one, two]], rows.over[[one, two]] = (
        torch.tensor([7.0, 8.0]),
        torch.tensor([False, True]),
    )
    pending = held.end_step(13)
    assert pending is not None
    assert pending.arrive() == StepDecisions(
        {}, {1: TokenDecision(5, 7.0, False), 2: TokenDecision(2, 8.0, True)}
    )
    assert rows.watch_rows[1].tolist() == [rows.bin] * 2


def test_a_token_that_the_monitor_did_not_read_stops_the_engine() -> None:
    held = slots(MONITOR)
    held.begin_step([], StepOrders({"a": Order(1, 3, False, 3)}, watched={"a": (1, 1)}))
    held.plan(["a"], [0], [3])
    with pytest.raises(SteeringError, match="generated tokens"):
        held.end_step(3)


def test_rows_of_a_batch() -> None:
    """A prompt in its last chunk, behind a request that decodes and was closed before."""
    held = slots()
    orders = {"new": Order(1, LENGTH, None, LAST), "old": Order(2, 8, True, 7)}
    held.begin_step([], StepOrders(orders, {"new": 1}))
    held.plan(["old", "new"], [20, 30], [1, 10])
    rows = held.buffers
    new, old = held._stays["new"].slot, held._stays["old"].slot
    assert rows.counts.tolist() == [1, 1, 1, 0, 2, 2]  # both are open as yet
    assert rows.read_tokens[0, 0] == 10 and rows.read_tokens[1, 0] == 5
    assert rows.read_slots[:, 0].tolist() == [new, new, new]
    assert rows.slot_of_token[:11].tolist() == [old, *[rows.bin] * 9, new]


def test_a_begun_answer_is_read_at_both_places() -> None:
    """By the guidance gate where the template hands over, by the end gate at its end; raw text there."""
    gate = GuidanceGate("whitened", (GateRead(0, 0), GateRead(0, 5)), torch.ones(2, 4), 0.0)
    ends = EndGate(GuidanceGate("test", (GateRead(0, 1),), torch.ones(1, 4), 0.0), 0.5, -0.5)
    held = Slots(RowBuffers(gate, 3, 64, torch.device("cpu"), ends=ends), steers=True)
    orders = {
        "chat": Order(1, 10, None, 9),
        "begun": Order(2, 12, None, 11, end=PromptEnd("begun", 10)),
        "raw": Order(3, 8, None, 7, end=PromptEnd("raw")),
    }
    held.begin_step([], StepOrders(orders, {"chat": 1, "begun": 2, "raw": 3}))
    held.plan(["chat", "begun", "raw"], [0, 0, 0], [10, 12, 8])
    rows = held.buffers
    chat, begun, raw = (held._stays[name].slot for name in orders)

    def read(row: int) -> list[tuple[int, int]]:
        pairs = zip(rows.read_tokens[row].tolist(), rows.read_slots[row].tolist(), strict=True)
        return [pair for pair in pairs if pair[1] != rows.bin]

    assert read(0) == [(9, chat), (19, begun)] and read(1) == [(4, chat), (14, begun)]
    assert read(2) == [(20, begun), (28, raw)]
    nan, inf = torch.nan, torch.inf
    expected = torch.tensor([[nan, nan, 0.0, -inf], [nan, nan, nan, 0.5], [-inf, 0.0, nan, -0.5]])
    torch.testing.assert_close(rows.partial[[chat, begun, raw]], expected, equal_nan=True)
    plan = SteeringPlan(gate, {3: torch.ones(4)}, end_gate=ends)
    made = GateRules(plan, steers=True)
    assert made.readable(GatedRequest(12, end=PromptEnd("begun", 10))) == 4
    assert made.readable(GatedRequest(12, end=PromptEnd("raw"))) == 6


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
        assert pending is not None and pending.arrive() == StepDecisions({number: Decision(-1.0, False)})


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
