"""The state of rows that outlive their batch, for decoding loops in which rows join and leave.

The calls of such a loop, under a guard that stays active:
1. Prefill: call the model directly on new prompts, with a cache of their own; `guard.carried()` returns their
   state, one row per prompt.
2. Join: `CarriedRows.join([running, new])`, in the order in which the caches were joined.
3. `guard.carry_on(rows, cache)`: from here on, every call with one token a row and this cache decodes them.
4. After steps, and before rows leave: `guard.carried()` again, then `rows.select(kept)`.

The decision on a row, and the monitor's state of its answer, move with the row and affect no other row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inferaligner.steering.monitor_state import AnswerWatch


@dataclass(frozen=True)
class CarriedRows:
    """The state of decided rows.

    Attributes:
        scores: `[rows]` float32, of the prompts, on the gate's device.
        open: `[rows]` bool, decided at the prompts, on the gate's device.
        strengths: `[rows]` on the CPU, scale what is added to each row; None is 1 for all.
        watch: the monitor's state; None without a monitor.
    """

    scores: Tensor
    open: Tensor
    strengths: Tensor | None = None
    watch: AnswerWatch | None = None

    def __len__(self) -> int:
        return len(self.open)

    def select(self, rows: Sequence[int]) -> CarriedRows:
        """Returns some rows (indices) in the order given; an index may occur twice."""
        picked = torch.tensor(list(rows), dtype=torch.long, device=self.open.device)
        return CarriedRows(
            self.scores[picked],
            self.open[picked],
            None if self.strengths is None else self.strengths[picked.cpu()],
            None if self.watch is None else self.watch.select(picked),
        )

    @classmethod
    def join(cls, parts: Sequence[CarriedRows]) -> CarriedRows:
        """Returns all rows of the parts, in order; the parts come from guards of the same plan."""
        watches = [part.watch for part in parts if part.watch is not None]
        strengths = None
        if any(part.strengths is not None for part in parts):
            strengths = torch.cat(
                [torch.ones(len(part)) if part.strengths is None else part.strengths for part in parts]
            )
        return cls(
            torch.cat([part.scores for part in parts]),
            torch.cat([part.open for part in parts]),
            strengths,
            AnswerWatch.join(watches) if watches else None,
        )

    def opened_at(self) -> list[int]:
        """The generated token at which the monitor opened each row; 0 for none. Waits for the device."""
        return [0] * len(self) if self.watch is None else [int(n) for n in self.watch.opened_at.tolist()]
