"""The monitor's state for one batch of prompts: recent scores, and the token at which each row opened.

The state stays on the device; it is copied to the host only when decisions are read. Generated tokens are
numbered from 1; number 0 means "not opened". Two methods read tokens:

- `step`: one more token of every row, on top of a cache. The usual case.
- `sweep`: a pass that holds answers from their first token on: decoding without a cache, or a direct call on
  prompt + continuation. No steered layer lies below the monitor's layer, so no score there depends on the
  monitor's decisions, and all tokens can be judged at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inferaligner.method.decision import opens
from inferaligner.method.monitor import AnswerMonitor, running_means


class AnswerWatch:
    """Recent scores and decisions of one batch.

    Attributes:
        open_now: `[rows, 1, 1]` bool: rows that the present decoding step steers, because of their prompt or
            of their answer.
        opened_at: `[rows]` int64: number of the token at which the monitor opened a row; 0 for none.
        device: device of the monitor's layer; known once a prompt went through it.
        begun: whether the rows have a state yet.
    """

    def __init__(self, monitor: AnswerMonitor, end_tokens: Sequence[int]) -> None:
        self.window = monitor.window
        self.bias = monitor.bias
        self.device: torch.device | None = None
        self.traced = False  # whether compiled code made the present state
        self.opened_at = torch.empty(0)  # [rows] int64
        self.open_now = torch.empty(0)
        self._end_tokens = list(end_tokens)
        self._ends = torch.empty(0)  # [end tokens], on the device of the token ids
        self._count = torch.empty(0)  # [rows] int64: tokens seen
        self._recent = torch.empty(0)  # [rows, window] float32: their scores, latest last
        self._live = torch.empty(0)  # [rows] bool: the answer goes on
        self._ended: Tensor | None = None  # [rows, tokens] bool of the present pass, at the device of the ids
        self.begun = False

    # -- between passes ------------------------------------------------------------------------------

    def begin(self, open_rows: Tensor) -> None:
        """Called when the prompts are decided, with the open rows `[rows]`; keeps the state of a `sweep`."""
        open_rows = open_rows.to(self.device)
        if not self.begun:
            rows = len(open_rows)
            self.opened_at = torch.zeros(rows, dtype=torch.long, device=self.device)
            self._count = torch.zeros(rows, dtype=torch.long, device=self.device)
            self._recent = torch.zeros((rows, self.window), device=self.device)
            self._live = torch.ones(rows, dtype=torch.bool, device=self.device)
            self.begun = True
        self.open_now = (open_rows | (self.opened_at > 0))[:, None, None]

    def note_tokens(self, ids: Tensor | None) -> None:
        """Called before a pass with its token ids `[rows, tokens]`, or None if it has embeddings."""
        self._ended = None
        if ids is None or not self._end_tokens:
            return
        if self._ends.device != ids.device or not len(self._ends):
            self._ends = torch.tensor(self._end_tokens, device=ids.device)
        self._ended = (ids[:, :, None] == self._ends).any(-1)

    def select(self, rows: Tensor) -> AnswerWatch:
        """A copy of the state of some rows (indices)."""
        picked = self._empty_copy()
        rows = rows.to(self.opened_at.device)
        for name in _STATE:
            setattr(picked, name, getattr(self, name)[rows])
        return picked

    @classmethod
    def join(cls, parts: Sequence[AnswerWatch]) -> AnswerWatch:
        """One state with the rows of several states of one monitor, in order."""
        joined = parts[0]._empty_copy()
        for name in _STATE:
            setattr(joined, name, torch.cat([getattr(part, name) for part in parts]))
        return joined

    def _empty_copy(self) -> AnswerWatch:
        copy = AnswerWatch.__new__(AnswerWatch)
        copy.__dict__.update(self.__dict__)
        copy._ended = None
        return copy

    @property
    def latest(self) -> Tensor:
        """The running score r + b `[rows]` at the last token that was read."""
        return self._recent.mean(-1) + self.bias

    def keep(self) -> None:
        """Called after a pass: copies the state of a compiled one, whose next run would overwrite it."""
        if self.traced:
            self.opened_at, self.open_now = self.opened_at.clone(), self.open_now.clone()
            self._count, self._recent = self._count.clone(), self._recent.clone()
            self._live = self._live.clone()

    # -- in the pass, at the monitor's layer -----------------------------------------------------------

    def step(self, scores: Tensor) -> None:
        """Reads one more token of each row, given its score s `[rows]`."""
        if self._ended is not None:
            self._live = self._live & ~self._ended[:, -1].to(scores.device)
        self._recent = torch.cat([self._recent[:, 1:], scores[:, None]], dim=1)
        self._count = self._count + 1
        over = opens(self._recent.mean(-1) + self.bias)
        fresh = over & self._live & (self.opened_at == 0)
        self.opened_at = torch.where(fresh, self._count, self.opened_at)
        self.open_now = self.open_now | fresh[:, None, None]

    def sweep(self, scores: Tensor, numbers: Tensor, last: Tensor) -> None:
        """Reads whole answers.

        Args:
            scores: s `[rows, tokens]` of a pass.
            numbers: `[rows, tokens]`, each token's number in its answer; below 1 in the prompt.
            last: `[rows]`, the number of each row's last token; higher numbers are padding.
        """
        valid = (numbers >= 1) & (numbers <= last[:, None])
        if self._ended is not None:
            ended = self._ended.to(scores.device) & (numbers >= 1)
            valid = valid & (ended.cumsum(dim=1) == 0)
        scores = torch.where(valid, scores, 0.0)
        over = opens(running_means(scores, self.window) + self.bias) & valid
        first = torch.where(over, numbers, _NEVER).amin(dim=1)
        opened = torch.where(first == _NEVER, 0, first)
        if self.begun:
            opened = torch.where(self.opened_at > 0, self.opened_at, opened)
        self.opened_at = opened
        self._count = last.clamp_min(0)
        self._live = valid.sum(1) == self._count
        # The latest scores, in their columns: number n of a row stands `n - numbers[row, 0]` columns in.
        back = torch.arange(self.window - 1, -1, -1, device=scores.device)
        columns = (last - numbers[:, 0])[:, None] - back
        picked = scores.gather(1, columns.clamp(0, scores.shape[1] - 1))
        self._recent = torch.where(columns >= 0, picked, 0.0)
        self.begun = True

    # -- results ---------------------------------------------------------------------------------------

    def steered(self, numbers: Tensor) -> Tensor:
        """Whether the monitor makes tokens steered, `[rows, tokens]`, given their numbers."""
        opened = self.opened_at.to(numbers.device)[:, None]
        return (opened > 0) & (numbers >= opened)


_STATE = ("opened_at", "open_now", "_count", "_recent", "_live")
"""The tensors with one entry per row, `[rows, ...]`."""

_NEVER = torch.iinfo(torch.long).max
