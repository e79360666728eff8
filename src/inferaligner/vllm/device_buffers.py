"""Buffers that tell the operations which tokens of a batch the gate reads and which are steered.

A batch of vLLM is one sequence of tokens, `[tokens, width]`, with the requests one behind the other. Before
every real forward pass the worker calls `load` with the tokens of that batch; after the pass it calls
`clear`, so that vLLM's dummy runs read and steer nothing.
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
    """The buffers of one worker, and the state of every slot.

    A slot holds one running request. Slot number `slots` is the padding slot: unused entries of the buffers
    point to it, and it never opens.

    Attributes:
        padding_slot: its number.
        read_rows: number of offsets that are read, of both gates together.
        turn_reads: number of columns of `partial` that belong to the guidance gate; -1 without an end gate.
        counts: `[read_rows + 4]` on the CPU: tokens read at each offset, decisions due, generated tokens that
            the monitor reads, tokens that are steered if their slot is open, tokens that are steered.
        read_tokens: `[read_rows + 1, slots]`, the tokens that are read at each offset.
        read_slots: `[read_rows + 1, slots]`, their slots; the last row lists the slots to decide.
        slot_of_token: `[tokens]`, the padding slot for tokens that are never steered.
        steered: `[tokens, 1]`, whether the token's slot is open.
        steer_tokens: `[tokens]`, the numbers of these tokens (CPU only).
        partial: `[slots + 1, reads]`, the dot products; NaN until read. With an end gate, the columns of its
            reads follow, and one with its bias; -inf excludes the gate that does not judge a prompt.
        score, open: `[slots + 1]`, the decisions.
        watch_rows, recent, token_score, over: the monitor's input, state and results (`ops.watch`).
    """

    def __init__(
        self,
        gate: GuidanceGate,
        slots: int,
        tokens: int,
        device: torch.device,
        monitor: AnswerMonitor | None = None,
        end_gate: EndGate | None = None,
    ) -> None:
        """`slots` is vLLM's `max_num_seqs`, `tokens` its `max_num_batched_tokens`. `end_gate` reads prompts
        that do not end as the chat template ends them; None if all do."""
        self.gate = gate
        self.end_gate = end_gate
        self.monitor = monitor
        self.device = device
        self.padding_slot = slots
        # The guidance gate's reads stand first, then the end gate's and, in a last column, its bias.
        self.read_rows = len(gate.offsets) + (0 if end_gate is None else len(end_gate.gate.offsets))
        self.turn_reads = -1 if end_gate is None else len(gate.reads)
        columns = len(gate.reads) + (0 if end_gate is None else len(end_gate.gate.reads) + 1)
        self.decide_row = self.read_rows
        self.watch_row = self.read_rows + 1
        self.steer_row = self.read_rows + 2
        self._on_cpu = device.type == "cpu"
        self.counts = torch.zeros(self.read_rows + 4, dtype=torch.int64)
        # A CUDA graph accepts no CPU tensor; on a GPU the operations never read the counts.
        self.graph_counts = self.counts if self._on_cpu else self.counts.to(device)
        shape = (self.read_rows + 1, slots)
        self.read_tokens = torch.zeros(shape, dtype=torch.int64, device=device)
        self.read_slots = torch.full(shape, self.padding_slot, dtype=torch.int64, device=device)
        self.slot_of_token = torch.full((tokens,), self.padding_slot, dtype=torch.int64, device=device)
        self.steered = torch.zeros((tokens, 1), dtype=torch.bool, device=device)
        self.steer_tokens = torch.zeros(tokens if self._on_cpu else 1, dtype=torch.int64, device=device)
        self.partial = torch.full((slots + 1, columns), torch.nan, device=device)
        self.score = torch.full((slots + 1,), torch.nan, device=device)
        self.open = torch.ones(slots + 1, dtype=torch.bool, device=device)
        self.open[self.padding_slot] = False
        self.watch_rows = self._empty_watch_rows().to(device)
        self.recent = torch.zeros((slots + 1, 1 if monitor is None else monitor.window), device=device)
        self.token_score = torch.full((slots + 1,), torch.nan, device=device)
        self.over = torch.zeros(slots + 1, dtype=torch.bool, device=device)
        self._loaded = 0  # tokens of the batch that is loaded

    def _empty_watch_rows(self) -> Tensor:
        rows = torch.zeros((3, self.padding_slot), dtype=torch.int64)
        rows[1] = self.padding_slot
        return rows

    def reset_slot(
        self,
        slot: int,
        open_now: bool,
        recent_scores: Sequence[float] = (),
        tokens_read: int = 0,
        kind: EndKind = "template",
    ) -> None:
        """Prepares a slot for a new request.

        Args:
            slot: its number.
            open_now: the decision; True for an undecided request, so that a lost decision steers.
            recent_scores: the monitor's scores of the latest generated tokens, oldest first.
            tokens_read: generated tokens that the monitor has read in all.
            kind: how the prompt ends.
        """
        self.partial[slot] = torch.nan
        if self.end_gate is not None:
            biases = {"template": -torch.inf, "begun": self.end_gate.begun, "raw": self.end_gate.raw}
            self.partial[slot, -1] = biases[kind]
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
            for back, score in enumerate(reversed(recent_scores)):
                recent[(tokens_read - 1 - back) % window] = score
            self.recent[slot] = recent.to(self.device)

    def load(
        self,
        reads: Sequence[Sequence[tuple[int, int]]],
        due: Sequence[int],
        steered: Sequence[tuple[int, int, int]],
        tokens: int,
        watched: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """Fills the buffers for the next forward pass.

        Args:
            reads: for each offset of the gate, then of the end gate: pairs (token of the batch, slot).
            due: the slots whose prompt ends in this pass.
            steered: spans (first token, last token + 1, slot).
            tokens: number of tokens in the batch.
            watched: the monitor's reads: (token of the batch, slot, number of the generated token).
        """
        for row, pairs in enumerate(reads):
            self.counts[row] = len(pairs)
        self.counts[self.decide_row] = len(due)
        self.counts[self.watch_row] = len(watched)
        self.counts[self.steer_row] = sum(end - begin for begin, end, _ in steered)
        if due or any(reads):
            read_tokens = np.zeros(self.read_tokens.shape, dtype=np.int64)
            read_slots = np.full(self.read_slots.shape, self.padding_slot, dtype=np.int64)
            for row, pairs in enumerate(reads):
                for number, (token, slot) in enumerate(pairs):
                    read_tokens[row, number], read_slots[row, number] = token, slot
            for number, slot in enumerate(due):
                read_slots[self.decide_row, number] = slot
            self._copy(read_tokens, self.read_tokens)
            self._copy(read_slots, self.read_slots)
        if watched:
            assert self.monitor is not None
            watch_rows = self._empty_watch_rows().numpy()
            for number, (token, slot, generated) in enumerate(watched):
                watch_rows[:, number] = token, slot, (generated - 1) % self.monitor.window
            self._copy(watch_rows, self.watch_rows)
        if steered:
            slot_of_token = np.full(tokens, self.padding_slot, dtype=np.int64)
            for begin, end, slot in steered:
                slot_of_token[begin:end] = slot
            self._copy(slot_of_token, self.slot_of_token[:tokens])
            settle(self.counts, self.open, self.slot_of_token, self.steered, self.steer_tokens)
        self._loaded = tokens

    def clear(self) -> None:
        """Empties the buffers: nothing is read or steered until the next `load`."""
        if not self._loaded:
            return
        if int(self.counts[: self.watch_row].sum()):
            self.read_slots.fill_(self.padding_slot)
        if int(self.counts[self.watch_row]):
            self.watch_rows[1].fill_(self.padding_slot)
        if int(self.counts[self.steer_row]):
            self.slot_of_token[: self._loaded].fill_(self.padding_slot)
            self.steered[: self._loaded].fill_(False)
        self.counts.zero_()
        self._loaded = 0

    def _copy(self, values: NDArray[np.int64], buffer: Tensor) -> None:
        host = torch.from_numpy(values)
        # Pinned memory of its own for every copy: it runs later, when the host prepares the next step.
        buffer.copy_(host if self._on_cpu else host.pin_memory(), non_blocking=True)
