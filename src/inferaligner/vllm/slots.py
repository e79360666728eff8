"""The requests that are running on one worker, each in a slot of the row buffers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inferaligner.errors import SteeringError
from inferaligner.method.decision import Decision
from inferaligner.vllm.device_buffers import RowBuffers
from inferaligner.vllm.protocol import Order, StepDecisions, StepOrders, TokenDecision


@dataclass
class SlotAssignment:
    slot: int
    order: Order
    reading: bool  # the gate has not decided yet, as far as the host knows
    steered: bool  # rows may have to be steered; False once the host knows that the gate is closed


class Slots:
    """Gives slots to requests and turns vLLM's batch into rows of the buffers.

    With a monitor, requests whose gate is closed stay marked: any token of their answer may open them.
    """

    def __init__(self, buffers: RowBuffers, *, steers: bool) -> None:
        self.buffers = buffers
        self.steers = steers
        self._stays: dict[str, SlotAssignment] = {}
        self._free = list(range(buffers.bin))
        self._due: list[SlotAssignment] = []
        self._watched: list[tuple[SlotAssignment, int]] = []  # and the number of the generated token
        self._expected: StepOrders | None = None
        self._planned = False

    def begin_step(self, gone: Sequence[str], orders: StepOrders) -> None:
        """Before the model runs: requests leave (finished or preempted), and others arrive."""
        for request in gone:
            self._leave(request)
        for request, order in orders.orders.items():
            self._leave(request)  # preempted and resumed within one step
            if not self._free:
                raise SteeringError(
                    f"{len(self._stays)} requests hold slots of the gate and another one came; expected at "
                    f"most {self.buffers.bin} (max_num_seqs). Please report this."
                )
            slot = self._free.pop()
            undecided = order.open is None
            may_open = order.open is not False or self.buffers.monitor is not None
            self._stays[request] = SlotAssignment(slot, order, undecided, self.steers and may_open)
            self.buffers.begin(slot, undecided or bool(order.open), order.heard, order.read, order.end.kind)
        for request, ticket in orders.closed.items():
            stay = self._stays.get(request)
            if stay is not None and stay.order.ticket == ticket:
                stay.steered = False
        self._expected, self._planned, self._due, self._watched = orders, False, [], []

    def plan(self, requests: Sequence[str], starts: Sequence[int], lengths: Sequence[int]) -> None:
        """Called by the runner's seam, right before the forward pass of a real batch.

        Args:
            requests: in the order of the batch.
            starts: position of each request's first token in this batch.
            lengths: its tokens in this batch.
        """
        assert self._expected is not None
        watched: list[tuple[int, int, int]] = []
        reads: list[list[tuple[int, int]]] = [[] for _ in range(self.buffers.read_rows)]
        steered: list[tuple[int, int, int]] = []
        base = 0
        for request, start, length in zip(requests, starts, lengths, strict=True):
            stay = self._stays.get(request)
            if stay is None:
                raise SteeringError(
                    f"Request {request} reached the model without an order from the scheduler, so it "
                    f"cannot be gated. Start vLLM with the scheduler class of inferaligner."
                )
            if stay.reading:
                end = stay.order.prompt_length - 1
                for row, place in self._places(stay.order):
                    if start <= place < start + length:
                        reads[row].append((base + place - start, stay.slot))
                if start <= end < start + length:
                    self._due.append(stay)
            ticket, number = self._expected.watched.get(request, (None, 0))
            if ticket == stay.order.ticket:
                position = stay.order.prompt_length + number - 1
                if start <= position < start + length:
                    watched.append((base + position - start, stay.slot, number))
                    self._watched.append((stay, number))
            if stay.steered:
                first = max(start, stay.order.steer_from)
                if first < start + length:
                    steered.append((base + first - start, base + length, stay.slot))
            base += length
        self.buffers.load(reads, [stay.slot for stay in self._due], steered, base, watched)
        self._planned = True

    def _places(self, order: Order) -> Iterator[tuple[int, int]]:
        """What the gates read of a prompt: the row of each offset, and the position."""
        gate, ends = self.buffers.gate, self.buffers.ends
        turn = order.prompt_length if order.end.turn_end is None else order.end.turn_end
        if ends is None or order.end.kind != "raw":
            yield from ((row, turn - 1 - offset) for row, offset in enumerate(gate.offsets))
        if ends is not None and order.end.kind != "template":
            for row, offset in enumerate(ends.gate.offsets, start=len(gate.offsets)):
                yield row, order.prompt_length - 1 - offset

    def end_step(self, tokens: int) -> PendingDecisions | None:
        """After the forward pass: what was decided in it.

        Raises `SteeringError` if the gate was passed by.
        """
        assert self._expected is not None
        if tokens and not self._planned:
            raise SteeringError(
                "The model ran a batch that the gate did not see. This version of vLLM is not supported; "
                "stopping rather than serving without the gate."
            )
        self.buffers.clear()
        due = {stay.order.ticket for stay in self._due}
        if tokens and due != set(self._expected.due.values()):
            raise SteeringError(
                f"{len(self._expected.due)} requests were due for a decision in this step, and {len(due)} "
                "came to it. Stopping rather than serving without the gate."
            )
        if tokens and len(self._watched) != len(self._expected.watched):
            raise SteeringError(
                f"The monitor was to read {len(self._expected.watched)} generated tokens in this step, and "
                f"{len(self._watched)} came. Stopping rather than serving without the monitor."
            )
        if not due and not self._watched:
            return None
        for stay in self._due:
            stay.reading = False
        return PendingDecisions(self.buffers, self._due, self._watched)

    def _leave(self, request: str) -> None:
        stay = self._stays.pop(request, None)
        if stay is not None:
            self._free.append(stay.slot)


class PendingDecisions:
    """Decisions on their way from the device; nothing waits for them before `arrive`."""

    def __init__(
        self,
        buffers: RowBuffers,
        due: Sequence[SlotAssignment],
        watched: Sequence[tuple[SlotAssignment, int]],
    ) -> None:
        self._due = [stay.order.ticket for stay in due]
        self._watched = [(stay.order.ticket, number) for stay, number in watched]
        decided = torch.tensor([stay.slot for stay in due], dtype=torch.int64, device=buffers.device)
        read = torch.tensor([stay.slot for stay, _ in watched], dtype=torch.int64, device=buffers.device)
        self._ready: Any = None
        self._scores = self._start(torch.cat([buffers.score[decided], buffers.token_score[read]]))
        self._flags = self._start(torch.cat([buffers.open[decided], buffers.over[read]]))
        if buffers.device.type != "cpu":
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    @staticmethod
    def _start(values: Tensor) -> Tensor:
        return values.to("cpu", non_blocking=True)

    def arrive(self) -> StepDecisions:
        """The decisions by ticket; waits for the copy."""
        if self._ready is not None:
            self._ready.synchronize()
        told = list(zip(self._scores.tolist(), self._flags.tolist(), strict=True))
        decided, read = told[: len(self._due)], told[len(self._due) :]
        return StepDecisions(
            {ticket: Decision(*each) for ticket, each in zip(self._due, decided, strict=True)},
            {
                ticket: TokenDecision(number, *each)
                for (ticket, number), each in zip(self._watched, read, strict=True)
            },
        )
