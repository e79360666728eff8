"""Which rows of a batch are read by the gate and which are steered, in buffers that the operations look at.

A batch in vLLM is one row of tokens after another, all requests behind each other. Before every real forward
pass the worker calls `load` with the requests in the order of the batch; after it, `clear`, so that vLLM's
own dummy runs read and steer nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GuidanceGate
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.prompts.template_ends import EndKind
from inferaligner.vllm.ops import settle


class RowBuffers:
    """The buffers of one worker, with the state of every slot.

    Attributes:
        bin: number of the slot that takes what nobody wants (see `ops.py`).
        read_rows, turn_reads: offsets that are read, of both gates; columns of `partial` that are the
            guidance gate's, -1 without an end gate.
        counts: `[offsets + 4]` on the CPU: tokens read at each offset, decisions due, generated tokens that
            the monitor reads, tokens that are steered if their slot is open, tokens that are steered.
        read_tokens, read_slots: `[offsets + 1, slots]`; the last row of `read_slots` lists the slots to
            decide.
        slot_of_token: `[tokens]`, the bin for tokens that are never steered.
        steered: `[tokens, 1]`, whether the slot is open; `steer_tokens` `[tokens]`, these tokens' numbers
            (CPU only).
        partial: `[slots + 1, reads]`, the dot products; NaN until read. With an end gate its reads follow,
            and its bias; -inf keeps out the one of the two gates that does not judge a prompt.
        score: `[slots + 1]`; open: `[slots + 1]`.
        watch_rows, recent, token_score, over: what the monitor reads and says (`ops.watch`).
    """

    def __init__(
        self,
        gate: GuidanceGate,
        slots: int,
        tokens: int,
        device: torch.device,
        monitor: AnswerMonitor | None = None,
        ends: EndGate | None = None,
    ) -> None:
        """`ends` reads prompts that do not end as the chat template ends them; None where none come."""
        self.gate = gate
        self.ends = ends
        self.monitor = monitor
        self.device = device
        self.bin = slots
        # The guidance gate's reads stand first, then the end gate's and, in a last column, its bias.
        self.read_rows = len(gate.offsets) + (0 if ends is None else len(ends.gate.offsets))
        self.turn_reads = -1 if ends is None else len(gate.reads)
        columns = len(gate.reads) + (0 if ends is None else len(ends.gate.reads) + 1)
        self.decide_row = self.read_rows
        self.watch_row = self.read_rows + 1
        self.steer_row = self.read_rows + 2
        self._on_cpu = device.type == "cpu"
        self.counts = torch.zeros(self.read_rows + 4, dtype=torch.int64)
        # A graph on a GPU takes no tensor of the CPU, and its operations never look at the counts.
        self.graph_counts = self.counts if self._on_cpu else self.counts.to(device)
        shape = (self.read_rows + 1, slots)
        self.read_tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.read_slots = torch.full(shape, self.bin, dtype=torch.int64, device=device)
        self.slot_of_token = torch.full((tokens,), self.bin, dtype=torch.int64, device=device)
        self.steered = torch.zeros((tokens, 1), dtype=torch.bool, device=device)
        self.steer_tokens = torch.zeros(tokens if self._on_cpu else 1, dtype=torch.int64, device=device)
        self.partial = torch.full((slots + 1, columns), torch.nan, device=device)
        self.score = torch.full((slots + 1,), torch.nan, device=device)
        self.open = torch.ones(slots + 1, dtype=torch.bool, device=device)
        self.open[self.bin] = False
        self.watch_rows = self._idle_watch().to(device)
        self.recent = torch.zeros((slots + 1, 1 if monitor is None else monitor.window), device=device)
        self.token_score = torch.full((slots + 1,), torch.nan, device=device)
        self.over = torch.zeros(slots + 1, dtype=torch.bool, device=device)
        self._loaded = 0  # tokens whose rows are not clear

    def _idle_watch(self) -> Tensor:
        rows = torch.zeros((3, self.bin), dtype=torch.int64)
        rows[1] = self.bin
        return rows

    def begin(
        self,
        slot: int,
        open_now: bool,
        heard: Sequence[float] = (),
        tokens: int = 0,
        kind: EndKind = "template",
    ) -> None:
        """A request moves into a slot: undecided ones begin open, so that a lost decision steers.

        `heard` are the monitor's scores of the last of the `tokens` generated tokens that it has read;
        `kind` is how the prompt ends.
        """
        self.partial[slot] = torch.nan
        if self.ends is not None:
            bias = {"template": -torch.inf, "begun": self.ends.begun, "raw": self.ends.raw}[kind]
            self.partial[slot, -1] = bias
            if kind == "template":
                self.partial[slot, self.turn_reads : -1] = 0.0
            elif kind == "raw":
                self.partial[slot, : self.turn_reads] = 0.0
                self.partial[slot, 0] = -torch.inf
        self.score[slot] = torch.nan
        self.open[slot] = open_now
        if self.monitor is not None:
            window = self.monitor.window
            recent = torch.zeros(window)
            for back, score in enumerate(reversed(heard)):
                recent[(tokens - 1 - back) % window] = score
            self.recent[slot] = recent.to(self.device)

    def load(
        self,
        reads: Sequence[Sequence[tuple[int, int]]],
        due: Sequence[int],
        steered: Sequence[tuple[int, int, int]],
        tokens: int,
        watched: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """Sets the rows of the coming forward pass.

        Args:
            reads: for each offset of the gate, then of the end gate, pairs (token of the batch, slot).
            due: the slots whose prompt ends in this pass.
            steered: spans (first token, last token + 1, slot).
            tokens: of the batch.
            watched: for the monitor: (token of the batch, slot, number of the generated token).
        """
        for row, pairs in enumerate(reads):
            self.counts[row] = len(pairs)
        self.counts[self.decide_row] = len(due)
        self.counts[self.watch_row] = len(watched)
        self.counts[self.steer_row] = sum(end - begin for begin, end, _ in steered)
        if due or any(reads):
            read_tokens = np.zeros(self.read_tokens.shape, dtype=np.int64)
            read_slots = np.full(self.read_slots.shape, self.bin, dtype=np.int64)
            for row, pairs in enumerate(reads):
                for number, (token, slot) in enumerate(pairs):
                    read_tokens[row, number], read_slots[row, number] = token, slot
            for number, slot in enumerate(due):
                read_slots[self.decide_row, number] = slot
            self._send(read_tokens, self.read_tokens)
            self._send(read_slots, self.read_slots)
        if watched:
            assert self.monitor is not None
            watch_rows = self._idle_watch().numpy()
            for number, (token, slot, generated) in enumerate(watched):
                watch_rows[:, number] = token, slot, (generated - 1) % self.monitor.window
            self._send(watch_rows, self.watch_rows)
        if steered:
            slot_of_token = np.full(tokens, self.bin, dtype=np.int64)
            for begin, end, slot in steered:
                slot_of_token[begin:end] = slot
            self._send(slot_of_token, self.slot_of_token[:tokens])
            settle(self.counts, self.open, self.slot_of_token, self.steered, self.steer_tokens)
        self._loaded = tokens

    def clear(self) -> None:
        """Nothing is read and nothing steered until the next `load`."""
        if not self._loaded:
            return
        if int(self.counts[: self.watch_row].sum()):
            self.read_slots.fill_(self.bin)
        if int(self.counts[self.watch_row]):
            self.watch_rows[1].fill_(self.bin)
        if int(self.counts[self.steer_row]):
            self.slot_of_token[: self._loaded].fill_(self.bin)
            self.steered[: self._loaded].fill_(False)
        self.counts.zero_()
        self._loaded = 0

    def _send(self, values: NDArray[np.int64], place: Tensor) -> None:
        host = torch.from_numpy(values)
        # A fresh pinned copy each time: the copy runs later, while the host is at the next step already.
        place.copy_(host if self._on_cpu else host.pin_memory(), non_blocking=True)
