"""A sample of scores stored as quantiles, and the distance of another sample from it.

110 quantiles stand for any number of scores. They are values of the sample itself (the inverse of its
empirical distribution function), so they bound that function from both sides. Every figure here uses the
bound that makes the smaller claim.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import kolmogorov

from inferaligner.errors import InputError

Floats = npt.NDArray[np.float64]

LEVELS_IN_THOUSANDTHS = (*range(0, 1000, 10), *range(991, 1000), 1000)
"""Steps of one hundredth; of one thousandth in the last hundredth, where thresholds of a gate lie."""

_LEVELS = np.array(LEVELS_IN_THOUSANDTHS) / 1000


@dataclass(frozen=True)
class StoredSample:
    """The size of a sample and its values at `LEVELS_IN_THOUSANDTHS`, ascending."""

    n: int
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        fits = len(self.quantiles) == len(LEVELS_IN_THOUSANDTHS) and all(map(math.isfinite, self.quantiles))
        if not fits or self.n < 1 or list(self.quantiles) != sorted(self.quantiles):
            raise InputError(
                f"a stored sample of {self.n} scores with {len(self.quantiles)} quantiles: expected at least "
                f"one score and {len(LEVELS_IN_THOUSANDTHS)} finite quantiles, ascending"
            )

    @classmethod
    def of(cls, scores: Sequence[float]) -> StoredSample:
        """Stores a sample.

        Args:
            scores: the sample, in any order.

        Raises:
            InputError: the sample is empty, or a score is not finite.
        """
        if not len(scores) or not all(map(math.isfinite, scores)):
            raise InputError(f"{len(scores)} scores: expected at least one, and finite numbers alone")
        ordered, n = sorted(scores), len(scores)
        # Integers, so that no rounding moves a level past a score.
        ranks = [max(0, -(-level * n // 1000) - 1) for level in LEVELS_IN_THOUSANDTHS]
        return cls(n, tuple(float(ordered[rank]) for rank in ranks))

    def below(self, points: Floats) -> tuple[Floats, Floats]:
        """Lower and upper bounds `[points]` of the share of the sample at or below each point."""
        reached = np.searchsorted(np.array(self.quantiles), points, side="right")
        padded = np.concatenate([[0.0], _LEVELS, [1.0]])
        return padded[reached], np.where(reached == 0, 0.0, padded[reached + 1])

    def above(self, threshold: float) -> tuple[float, float]:
        """Lower and upper bound of the share of the sample above a threshold."""
        low, high = self.below(np.array([threshold]))
        return 1.0 - float(high[0]), 1.0 - float(low[0])


def distance(stored: Sequence[StoredSample], scores: Sequence[float]) -> float:
    """The Kolmogorov-Smirnov distance between `scores` and the pooled stored samples.

    Returns:
        A lower bound of the exact distance, below it by at most one hundredth (a quantile step).
    """
    live = np.sort(np.asarray(scores, dtype=np.float64))
    total = sum(sample.n for sample in stored)
    points = np.unique(np.concatenate([live, *(np.array(sample.quantiles) for sample in stored)]))
    share = np.searchsorted(live, points, side="right") / live.size
    low, high = np.zeros(points.size), np.zeros(points.size)
    for sample in stored:
        below = sample.below(points)
        low += below[0] * sample.n / total
        high += below[1] * sample.n / total
    return float(max(0.0, (share - high).max(), (low - share).max()))


def kolmogorov_p(distance: float, n: int, m: int) -> float:
    """The p value of a Kolmogorov-Smirnov distance between two samples.

    It is Kolmogorov's limit distribution with Stephens' correction for finite samples; conservative where
    scores tie.

    Args:
        distance: the distance between the two samples, see `distance`.
        n: size of one sample.
        m: size of the other sample.

    Returns:
        The probability that two samples of one distribution are at least this far apart.
    """
    effective = math.sqrt(n * m / (n + m))
    return float(kolmogorov((effective + 0.12 + 0.11 / effective) * distance))
