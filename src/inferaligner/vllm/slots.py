"""The requests that are running on one worker, each in a slot of the row buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inferaligner.errors import SteeringError
from inferaligner.gate import Decision
from inferaligner.vllm.messages import Order, StepOrders, Verdicts
from inferaligner.vllm.rows import RowBuffers


@dataclass
class _Stay:
    slot: int
    order: Order
    reading: bool  # the gate has not decided yet, as far as the host knows
    steered: bool  # rows may have to be steered; False once the host knows that the gate is closed


class Slots:
    """Gives slots to requests and turns vLLM's batch into rows of the buffers."""

    def __init__(self, buffers: RowBuffers, *, steers: bool) -> None:
        self.buffers = buffers
        self.steers = steers
        self._stays: dict[str, _Stay] = {}
        self._free = list(range(buffers.bin))
        self._due: list[_Stay] = []
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
            self._stays[request] = _Stay(slot, order, undecided, self.steers and order.open is not False)
            self.buffers.begin(slot, open_now=undecided or bool(order.open))
        for request, ticket in orders.closed.items():
            stay = self._stays.get(request)
            if stay is not None and stay.order.ticket == ticket:
                stay.steered = False
        self._expected, self._planned, self._due = orders, False, []

    def plan(self, requests: Sequence[str], starts: Sequence[int], lengths: Sequence[int]) -> None:
        """Called by the runner's seam, right before the forward pass of a real batch.

        Args:
            requests: in the order of the batch.
            starts: position of each request's first token in this batch.
            lengths: its tokens in this batch.
        """
        offsets = self.buffers.gate.offsets
        reads: list[list[tuple[int, int]]] = [[] for _ in offsets]
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
                for row, offset in enumerate(offsets):
                    if start <= end - offset < start + length:
                        reads[row].append((base + end - offset - start, stay.slot))
                if start <= end < start + length:
                    self._due.append(stay)
            if stay.steered:
                first = max(start, stay.order.steer_from)
                if first < start + length:
                    steered.append((base + first - start, base + length, stay.slot))
            base += length
        self.buffers.load(reads, [stay.slot for stay in self._due], steered, base)
        self._planned = True

    def end_step(self, tokens: int) -> PendingVerdicts | None:
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
        if not due:
            return None
        at = torch.tensor([stay.slot for stay in self._due], device=self.buffers.device)
        pending = PendingVerdicts(
            [stay.order.ticket for stay in self._due], self.buffers.score[at], self.buffers.open[at]
        )
        for stay in self._due:
            stay.reading = False
        return pending

    def _leave(self, request: str) -> None:
        stay = self._stays.pop(request, None)
        if stay is not None:
            self._free.append(stay.slot)


class PendingVerdicts:
    """Decisions on their way from the device; nothing waits for them before `arrive`."""

    def __init__(self, tickets: Sequence[int], score: Tensor, is_open: Tensor) -> None:
        self._tickets = list(tickets)
        if score.device.type == "cpu":
            self._score, self._open, self._ready = score, is_open, None
        else:
            self._score = score.to("cpu", non_blocking=True)
            self._open = is_open.to("cpu", non_blocking=True)
            self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._ready.record()

    def arrive(self) -> Verdicts:
        """The decisions by ticket; waits for the copy."""
        if self._ready is not None:
            self._ready.synchronize()
        values = zip(self._tickets, self._score.tolist(), self._open.tolist(), strict=True)
        return {ticket: Decision(score, is_open) for ticket, score, is_open in values}
