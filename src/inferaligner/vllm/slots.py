"""The requests that run on one worker: each has a slot of the row buffers.

In every step `GatedWorker` calls `begin_step` with the scheduler's orders, then vLLM's runner calls
`plan_batch` (through `runner_hooks.py`) right before the forward pass, and `end_step` returns the decisions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inferaligner.errors import SteeringError
from inferaligner.method.decision import Decision
from inferaligner.vllm.device_buffers import RowBuffers
from inferaligner.vllm.protocol import Order, StepDecisions, StepOrders, TokenDecision


@dataclass
class SlotAssignment:
    """A request in a slot."""

    slot: int
    order: Order
    undecided: bool  # the gate has not decided yet, as far as the host knows
    may_steer: bool  # False once the host knows that none of its tokens is steered


class Slots:
    """Assigns slots to requests, and turns vLLM's batches into rows of the buffers.

    With a monitor, requests whose gate is closed stay marked for steering: any token of their answer may open
    them. `steers` is False in shadow mode, and if opened requests are refused.
    """

    def __init__(self, buffers: RowBuffers, *, steers: bool) -> None:
        self.buffers = buffers
        self.steers = steers
        self._assigned: dict[str, SlotAssignment] = {}
        self._free = list(range(buffers.padding_slot))
        self._due: list[SlotAssignment] = []
        self._watched: list[tuple[SlotAssignment, int]] = []  # with the number of the generated token
        self._orders: StepOrders | None = None
        self._planned = False

    def begin_step(self, gone: Sequence[str], orders: StepOrders) -> None:
        """Frees and assigns slots before the model runs.

        Args:
            gone: requests that finished or were preempted.
            orders: the scheduler's message for this step.

        Raises:
            SteeringError: more requests than slots.
        """
        for request in gone:
            self._release(request)
        for request, order in orders.orders.items():
            self._release(request)  # preempted and resumed within one step
            if not self._free:
                raise SteeringError(
                    f"{len(self._assigned)} requests hold slots of the gate and another one came; expected "
                    f"at most {self.buffers.padding_slot} (max_num_seqs). Please report this."
                )
            slot = self._free.pop()
            undecided = order.open is None
            may_open = order.open is not False or self.buffers.monitor is not None
            self._assigned[request] = SlotAssignment(slot, order, undecided, self.steers and may_open)
            self.buffers.reset_slot(
                slot, undecided or bool(order.open), order.recent_scores, order.tokens_read, order.end.kind
            )
        for request, admission in orders.closed.items():
            assigned = self._assigned.get(request)
            if assigned is not None and assigned.order.admission == admission:
                assigned.may_steer = False
        self._orders, self._planned, self._due, self._watched = orders, False, [], []

    def plan_batch(self, requests: Sequence[str], starts: Sequence[int], lengths: Sequence[int]) -> None:
        """Loads the buffers for a real batch, right before its forward pass.

        Args:
            requests: in the order of the batch.
            starts: position of each request's first token in this batch.
            lengths: number of its tokens in this batch.

        Raises:
            SteeringError: a request without an order from the scheduler.
        """
        assert self._orders is not None
        watched: list[tuple[int, int, int]] = []
        reads: list[list[tuple[int, int]]] = [[] for _ in range(self.buffers.read_rows)]
        steered: list[tuple[int, int, int]] = []
        base = 0  # tokens of the batch before this request
        for request, start, length in zip(requests, starts, lengths, strict=True):
            assigned = self._assigned.get(request)
            if assigned is None:
                raise SteeringError(
                    f"Request {request} reached the model without an order from the scheduler, so it "
                    f"cannot be gated. Start vLLM with the scheduler class of inferaligner."
                )
            slot, order = assigned.slot, assigned.order
            if assigned.undecided:
                for row, position in self._read_positions(order):
                    if start <= position < start + length:
                        reads[row].append((base + position - start, slot))
                if start <= order.prompt_length - 1 < start + length:
                    self._due.append(assigned)
            admission, number = self._orders.watched.get(request, (None, 0))
            if admission == order.admission:
                position = order.prompt_length + number - 1
                if start <= position < start + length:
                    watched.append((base + position - start, slot, number))
                    self._watched.append((assigned, number))
            if assigned.may_steer:
                first = max(start, order.steer_from)
                if first < start + length:
                    steered.append((base + first - start, base + length, slot))
            base += length
        self.buffers.load(reads, [each.slot for each in self._due], steered, base, watched)
        self._planned = True

    def _read_positions(self, order: Order) -> Iterator[tuple[int, int]]:
        """The tokens of a prompt that the gates read: (row of `read_tokens`, position)."""
        gate, end_gate = self.buffers.gate, self.buffers.end_gate
        turn = order.prompt_length if order.end.turn_end is None else order.end.turn_end
        if end_gate is None or order.end.kind != "raw":
            yield from ((row, turn - 1 - offset) for row, offset in enumerate(gate.offsets))
        if end_gate is not None and order.end.kind != "template":
            for row, offset in enumerate(end_gate.gate.offsets, start=len(gate.offsets)):
                yield row, order.prompt_length - 1 - offset

    def end_step(self, tokens: int) -> PendingDecisions | None:
        """Clears the buffers after the forward pass.

        Args:
            tokens: number of tokens that the scheduler sent out in this step.

        Returns:
            The decisions of this step; None if there are none.

        Raises:
            SteeringError: a batch, a due decision or a read of the monitor passed the gate by.
        """
        assert self._orders is not None
        if tokens and not self._planned:
            raise SteeringError(
                "The model ran a batch that the gate did not see. This version of vLLM is not supported; "
                "stopping rather than serving without the gate."
            )
        self.buffers.clear()
        due = {each.order.admission for each in self._due}
        if tokens and due != set(self._orders.due.values()):
            raise SteeringError(
                f"{len(self._orders.due)} requests were due for a decision in this step, but the batch held "
                f"{len(due)}. Stopping rather than serving without the gate."
            )
        if tokens and len(self._watched) != len(self._orders.watched):
            raise SteeringError(
                f"The monitor was to read {len(self._orders.watched)} generated tokens in this step, but the "
                f"batch held {len(self._watched)}. Stopping rather than serving without the monitor."
            )
        if not due and not self._watched:
            return None
        for assigned in self._due:
            assigned.undecided = False
        return PendingDecisions(self.buffers, self._due, self._watched)

    def _release(self, request: str) -> None:
        assigned = self._assigned.pop(request, None)
        if assigned is not None:
            self._free.append(assigned.slot)


class PendingDecisions:
    """Decisions on their way from the device to the host; only `arrive` waits for them."""

    def __init__(
        self,
        buffers: RowBuffers,
        due: Sequence[SlotAssignment],
        watched: Sequence[tuple[SlotAssignment, int]],
    ) -> None:
        self._due = [each.order.admission for each in due]
        self._watched = [(each.order.admission, number) for each, number in watched]
        decided = torch.tensor([each.slot for each in due], dtype=torch.int64, device=buffers.device)
        read = torch.tensor([each.slot for each, _ in watched], dtype=torch.int64, device=buffers.device)
        scores = torch.cat([buffers.score[decided], buffers.token_score[read]])
        opened = torch.cat([buffers.open[decided], buffers.over[read]])
        self._scores = scores.to("cpu", non_blocking=True)
        self._opened = opened.to("cpu", non_blocking=True)
        self._ready: Any = None
        if buffers.device.type != "cpu":
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    def arrive(self) -> StepDecisions:
        """Waits for the copy, and returns the decisions."""
        if self._ready is not None:
            self._ready.synchronize()
        results = list(zip(self._scores.tolist(), self._opened.tolist(), strict=True))
        decided, read = results[: len(self._due)], results[len(self._due) :]
        return StepDecisions(
            {admission: Decision(*each) for admission, each in zip(self._due, decided, strict=True)},
            {
                admission: TokenDecision(number, *each)
                for (admission, number), each in zip(self._watched, read, strict=True)
            },
        )
