"""The state of one batch of prompts: which rows are open, and which tokens the present pass steers.

A *scope* begins when a batch of prompts enters the model and lasts until the next one. A *pass* is one
forward call within it: a prefill (or a chunk of one), a decoding step, a verification of drafted tokens.
A *row* is one sequence of the batch. Positions count tokens of the padded batch, cached ones included.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inferaligner.errors import SteeringError
from inferaligner.gate import Decision, GuidanceGate
from inferaligner.steering.plan import Mode, Positions


@dataclass
class Pass:
    """One forward call: tokens `start … start + length - 1` of every row."""

    start: int
    length: int
    reads_gate: bool
    settled: bool  # every row's decision was known before this pass
    replayed_rows: Tensor | None = None  # set while opened rows run their prefill a second time
    mask: Tensor | None = field(default=None, repr=False)  # cached by `PromptScope.steered_columns`


class PromptScope:
    """Decisions of one batch, latched: a row that opened stays open until the scope ends."""

    def __init__(self, ends: Tensor, gate: GuidanceGate, mode: Mode, positions: Positions) -> None:
        self.ends = ends  # [rows], CPU: position of each row's last prompt token
        self.gate = gate
        self.mode = mode
        self.positions = positions
        self.first_end = int(ends.min())
        self.last_end = int(ends.max())
        self.start: int | None = None  # tokens in the cache when the scope began
        self.seen = 0
        self.settled = False
        self.any_open = False  # both are known to the host only once the scope is settled
        self.all_open = False
        self.scores: Tensor | None = None  # [rows] float32, on the device of the gate's layers
        self.open: Tensor | None = None  # [rows] bool
        self._cache: Callable[[], Any] = lambda: None
        self.prefill: list[dict[str, Any]] = []  # keyword arguments of the prefill passes, kept for a replay
        self.cache_before: Any = None
        self._open_rows: Tensor | None = None
        self._on_device: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def begin_pass(self, rows: int, length: int, start: int) -> Pass:
        """Called before the model runs; `start` is the number of tokens that are cached already."""
        if self.start is None:
            self._begin(rows, start)
        elif rows != len(self.ends):
            raise SteeringError(
                f"The batch had {len(self.ends)} rows at its prompt and has {rows} now; "
                "decisions cannot be carried over. Start a new generate() call for another batch."
            )
        reads = not self.settled
        if reads and start > self.seen:
            raise SteeringError(
                f"Tokens {self.seen} to {start - 1} reached the cache without passing this guard."
            )
        self.seen = start
        return Pass(start, length, reads_gate=reads, settled=self.settled)

    def _begin(self, rows: int, start: int) -> None:
        if rows % len(self.ends):
            raise SteeringError(f"{len(self.ends)} prompts became {rows} rows; expected a multiple.")
        # Beams and several return sequences repeat each prompt in place.
        self.ends = self.ends.repeat_interleave(rows // len(self.ends))
        first_read = self.first_end - max(self.gate.offsets)
        if first_read < start:
            raise SteeringError(
                f"The gate reads the prompt from token {first_read} on, but {start} tokens are in the cache "
                "already and will not be computed again. Give the new turn at least "
                f"{max(self.gate.offsets) + 1} uncached tokens, or start without the cache."
            )
        self.start = self.seen = start

    def ends_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """`(row numbers, ends)`, both `[rows]`, on a device; copied once."""
        if device not in self._on_device:
            self._on_device[device] = (torch.arange(len(self.ends), device=device), self.ends.to(device))
        return self._on_device[device]

    def add_scores(self, part: Tensor) -> None:
        """Adds one read's dot products `[rows]`; rows whose token is not in this pass contribute 0."""
        self.scores = part + self.gate.bias if self.scores is None else self.scores + part.to(self.scores.device)

    def latch(self, now: Pass) -> None:
        """Called after the gate's last layer: rows whose prompt ends in this pass are decided, on device."""
        assert self.scores is not None
        _, ends = self.ends_on(self.scores.device)
        if self.mode == "gate":
            # Not `score > 0`: a NaN must open the gate, not slip through it.
            opened = ~(self.scores <= 0)
        else:
            opened = torch.full_like(self.scores, self.mode == "always", dtype=torch.bool)
        opened = opened & (ends >= now.start) & (ends < now.start + now.length)
        self.open = opened if self.open is None else self.open | opened

    def end_pass(self, now: Pass) -> bool:
        """Called after the model ran; True when this pass settled the last undecided row.

        This is the one place where the host waits for the device, once per prompt batch.
        """
        self.seen = now.start + now.length
        if self.settled or self.last_end >= self.seen:
            return False
        assert self.open is not None
        open_rows = self.open.cpu()
        self.any_open, self.all_open = bool(open_rows.any()), bool(open_rows.all())
        self.settled = True
        return True

    def belongs_to(self, cache: Any) -> None:
        """Remembers which KV cache holds this batch, without keeping it alive."""
        if cache is not None and not isinstance(cache, (tuple, list)):
            self._cache = weakref.ref(cache)

    def follows(self, cache: Any) -> bool:
        """Whether a later call with this cache continues the same batch."""
        return cache is not None and self._cache() is cache

    def keep_open(self, earlier: PromptScope) -> None:
        """Rows that were open earlier in the same conversation cache begin open."""
        if earlier.open is not None and len(earlier.ends) == len(self.ends):
            self.open = earlier.open.clone()

    def steered_columns(self, now: Pass, device: torch.device) -> tuple[int, Tensor]:
        """`(first column, mask [rows, columns from there on, 1])`: the tokens of this pass to steer."""
        if now.start > self.last_end:  # decoding: every token, the same mask each time
            return 0, self._open_rows_on(device)
        first = 0 if self.positions == "all" else min(max(self.first_end - now.start, 0), now.length)
        if now.mask is None or now.mask.device != device:
            assert self.open is not None
            rows, ends = self.open.to(device), self.ends_on(device)[1]
            if now.replayed_rows is not None:
                kept = now.replayed_rows.to(device)
                rows, ends = rows[kept], ends[kept]
            columns = torch.arange(now.start + first, now.start + now.length, device=device)
            mask = rows[:, None].expand(-1, len(columns))
            if self.positions == "from_gate":
                mask = mask & (columns >= ends[:, None])
            now.mask = mask[:, :, None]
        return first, now.mask

    def _open_rows_on(self, device: torch.device) -> Tensor:
        assert self.open is not None
        if self._open_rows is None or self._open_rows.device != device:
            self._open_rows = self.open.to(device)[:, None, None]
        return self._open_rows

    def decisions(self) -> list[Decision]:
        """One per row, in the order of the batch; empty before the prompt has been seen."""
        if not self.settled or self.scores is None or self.open is None:
            return []
        pairs = zip(self.scores.tolist(), self.open.tolist(), strict=True)
        return [Decision(score=score, open=is_open) for score, is_open in pairs]
