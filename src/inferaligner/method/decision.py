"""The decision on a score, and the one rule behind it: a score above 0 opens, and so does NaN.

Every engine calls `opens`: for the guidance gate, the gate of begun answers and the answer monitor. A NaN
comes from a model in too low a precision or from a read that never happened; it must not pass as harmless.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor


@overload
def opens(score: float) -> bool: ...


@overload
def opens(score: Tensor) -> Tensor: ...


@overload
def opens(score: NDArray[Any]) -> NDArray[np.bool_]: ...


def opens(score: float | Tensor | NDArray[Any]) -> bool | Tensor | NDArray[np.bool_]:
    """Whether a score opens: it is above 0, or it is NaN.

    Args:
        score: one score, or scores of any shape. The bias is part of a score.

    Returns:
        A bool; for a tensor or an array, bools of its shape (on its device).
    """
    # Not `score > 0`, which is false for NaN.
    return ~(score <= 0) if isinstance(score, (Tensor, np.ndarray)) else not score <= 0


@dataclass(frozen=True)
class Decision:
    """The decision on one row: a positive score means harmful, and harmful means open.

    Attributes:
        score: the score of the prompt, also where the monitor opened the row later.
        open: whether the row is open by now, because of its prompt or of its answer.
        answer_token: number (from 1) of the generated token at which the monitor opened a row whose prompt
            had left it closed. In shadow mode the token at which the monitor would have opened it.
    """

    score: float
    open: bool
    answer_token: int | None = None

    @property
    def opened_at(self) -> int | Literal["prompt"] | None:
        """ "prompt", the number of the generated token, or None for a row that stayed closed."""
        return "prompt" if self.open and self.answer_token is None else self.answer_token
