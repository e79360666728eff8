"""What a guard knows of rows that outlive their batch: for decoding loops that let rows join and leave.

Who calls what, in a loop of one's own around a guard that is active all the while:
1. prefill: a direct call of the model on new prompts, on a cache of their own; `guard.carried()` is
   what became of them, one row per prompt.
2. join: `CarriedRows.join([running, new])`, in the order in which the caches were joined.
3. `guard.carry_on(rows, cache)`: from here on every call with one token a row and this cache decodes them.
4. after steps and before rows leave: `guard.carried()` again, and `rows.select(kept)`.

A row's decision, and what a monitor has seen of its answer, go where the row goes and touch no other row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from inferaligner.steering.monitor_state import AnswerWatch


@dataclass(frozen=True)
class CarriedRows:
    """`scores` `[rows]` float32 and `open` `[rows]` bool, decided at the prompt, on the gate's device.

    `strengths` `[rows]` (CPU) scale what is added to a row; None is 1 for all. `watch` holds a monitor's
    state.
    """

    scores: Tensor
    open: Tensor
    strengths: Tensor | None = None
    watch: AnswerWatch | None = None

    def __len__(self) -> int:
        return len(self.open)

    def select(self, rows: Sequence[int]) -> CarriedRows:
        """Some rows in the order given; one that is named twice is there twice."""
        picked = torch.tensor(list(rows), dtype=torch.long, device=self.open.device)
        return CarriedRows(
            self.scores[picked],
            self.open[picked],
            None if self.strengths is None else self.strengths[picked.cpu()],
            None if self.watch is None else self.watch.select(picked),
        )

    @classmethod
    def join(cls, parts: Sequence[CarriedRows]) -> CarriedRows:
        """All rows of the parts, in order; the parts come from guards of the same plan."""
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
        """Per row the generated token at which a monitor opened it; 0 for none. Waits for the device."""
        return [0] * len(self) if self.watch is None else [int(n) for n in self.watch.opened_at.tolist()]
