"""Whether two methods differ clearly on the same prompts.

Both methods answered every prompt, so the comparison is paired: only prompts on which they differ count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from inferaligner.errors import InputError
from inferaligner.statistics.intervals import binomial_at_most

CONFIDENCE = 0.95
_DRAWS = 2000


@dataclass(frozen=True)
class Difference:
    """`value` is the first method's mean minus the second's, with a paired bootstrap interval.

    `p` is McNemar's exact two-sided p-value for yes-or-no outcomes, otherwise None. `clear` means that the
    interval excludes zero, and that p, if there is one, is below 0.05.
    """

    value: float
    low: float
    high: float
    n: int
    p: float | None

    @property
    def clear(self) -> bool:
        """Whether the data show a difference."""
        apart = self.low > 0 or self.high < 0
        return apart and (self.p is None or self.p < 1 - CONFIDENCE)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """The exact two-sided p-value that the pairs which differ go either way with equal chance.

    Raises:
        InputError: `first` and `second` have different lengths.
    """
    _check(first, second)
    only_first = sum(a and not b for a, b in zip(first, second, strict=True))
    only_second = sum(b and not a for a, b in zip(first, second, strict=True))
    differing = only_first + only_second
    if differing == 0:
        return 1.0
    return min(1.0, 2 * binomial_at_most(min(only_first, only_second), differing, 0.5))


def compare(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> Difference:
    """The mean difference of paired values, which may be booleans.

    Raises:
        InputError: `first` and `second` have different lengths, or are empty.
    """
    _check(first, second)
    if not first:
        raise InputError("Nothing to compare: expected at least one prompt that both methods answered.")
    value, low, high = _bootstrap(np.subtract(first, second, dtype=float), np.mean, seed)
    yes_or_no = all(value in (0, 1) for value in (*first, *second))
    p = mcnemar([bool(v) for v in first], [bool(v) for v in second]) if yes_or_no else None
    return Difference(value, low, high, len(first), p)


def mean_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """Mean with a bootstrap interval."""
    return _bootstrap(values, np.mean, seed)


def median_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float, float]:
    """Median with a bootstrap interval, for times, some of which are always far off."""
    return _bootstrap(values, np.median, seed)


def _bootstrap(values: npt.ArrayLike, statistic: Callable[..., Any], seed: int) -> tuple[float, float, float]:
    """The statistic with its percentile interval."""
    array = np.asarray(values, dtype=float)
    drawn = array[np.random.default_rng(seed).integers(0, array.size, (_DRAWS, array.size))]
    side = (1 - CONFIDENCE) / 2
    low, high = np.quantile(statistic(drawn, axis=1), [side, 1 - side])
    return float(statistic(array)), float(low), float(high)


def _check(first: Sequence[float], second: Sequence[float]) -> None:
    if len(first) != len(second):
        raise InputError(f"{len(first)} and {len(second)} outcomes: expected one of each per prompt.")
