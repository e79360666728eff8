"""Rates, AUROC and thresholds with confidence intervals.

Reports print these intervals as `value [low, high], n`, and the gate's operating point rests on them.
Binomial tails and their inverses are scipy's incomplete beta function: P(X <= k) = 1 - I_p(k + 1, n - k).
`scipy.stats` has the same figures, but takes a second to import.

Scores follow the one polarity of the package: larger = more harmful; label True (or 1) = harmful.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaincc, betainccinv, betaincinv

from inferaligner.errors import InputError

Scores = Sequence[float] | npt.NDArray[np.floating]
Labels = Sequence[bool] | Sequence[int] | npt.NDArray[np.bool_] | npt.NDArray[np.integer]


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence bounds and the number of observations behind it.

    Without observations (`n == 0`) the value is NaN and the bounds are [0, 1]: nothing is known.
    """

    value: float
    low: float
    high: float
    n: int


def binomial_at_most(k: int, n: int, p: float) -> float:
    """P(X <= k) for X ~ Binomial(n, p), accurate in the far tail as well."""
    if k < 0 or k >= n:
        return float(k >= n)
    return float(betaincc(k + 1, n - k, p))


def clopper_pearson(k: int, n: int, confidence: float = 0.95) -> Interval:
    """The exact two-sided (Clopper-Pearson) interval of a rate.

    Args:
        k: number of successes.
        n: number of trials.
        confidence: probability that the interval covers the true rate, at least.

    Returns:
        `k / n` with its bounds; each bound leaves out (1 - confidence) / 2.

    Raises:
        InputError: unless 0 <= k <= n and 0 < confidence < 1.

    Example:
        >>> clopper_pearson(7, 10)
        Interval(value=0.7, low=0.347..., high=0.933..., n=10)
    """
    _check_counts(k, n, confidence)
    if n == 0:
        return Interval(math.nan, 0.0, 1.0, 0)
    side = (1.0 - confidence) / 2.0
    low = 0.0 if k == 0 else float(betaincinv(k, n - k + 1, side))
    return Interval(k / n, low, _upper(k, n, side), n)


def upper_bound(k: int, n: int, confidence: float = 0.95) -> float:
    """The exact one-sided upper bound of a rate after `k` successes in `n` trials.

    It is the p with P(Binomial(n, p) <= k) = 1 - confidence; for k = 0 that is 1 - (1 - confidence)^(1/n).

    Args:
        k: number of successes.
        n: number of trials.
        confidence: least probability that the true rate is at or below the bound.

    Raises:
        InputError: unless 0 <= k <= n and 0 < confidence < 1.
    """
    _check_counts(k, n, confidence)
    return _upper(k, n, 1.0 - confidence)


def _upper(k: int, n: int, error: float) -> float:
    """The p with P(Binomial(n, p) <= k) = error."""
    return 1.0 if k == n else float(betainccinv(k + 1, n - k, error))


def auroc(scores: Scores, labels: Labels) -> float:
    """The area under the ROC curve: P(a harmful score > a harmless score), ties counted one half.

    Args:
        scores: one score per row, larger = more harmful.
        labels: one label per row, True or 1 = harmful.

    Raises:
        InputError: unless there is one label per score, both classes occur and no score is NaN.
    """
    return _auroc(*_by_class(scores, labels))


def bootstrap_auroc(
    scores: Scores, labels: Labels, *, confidence: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The AUROC with a bootstrap percentile interval; each class is resampled on its own.

    When the classes separate perfectly, every resample separates too, and the bootstrap interval would have
    the width 0. Then the interval is the exact one for min(positives, negatives) disjoint pairs, all of them
    in the right order.

    Args:
        scores: one score per row, larger = more harmful.
        labels: one label per row, True or 1 = harmful.
        confidence: share of the resamples inside the interval.
        draws: number of resamples.
        seed: of the resamples; the same seed gives the same interval.

    Raises:
        InputError: as `auroc`, or unless 0 < confidence < 1 and draws >= 1.
    """
    positives, negatives = _by_class(scores, labels)
    _check_confidence(confidence)
    if draws < 1:
        raise InputError(f"bootstrap with {draws} draws: expected at least 1; 2000 is a good number")
    value, n = _auroc(positives, negatives), positives.size + negatives.size
    if value in (0.0, 1.0):
        pairs = min(positives.size, negatives.size)
        exact = clopper_pearson(round(value * pairs), pairs, confidence)
        return Interval(value, exact.low, exact.high, n)
    generator = np.random.default_rng(seed)
    # scipy.stats.bootstrap gives the same kind of interval, but would draw other resamples from the same seed
    # (figures in stored artifacts and reports would change), and counting per distinct value is faster.
    values, ranks = np.unique(np.concatenate([positives, negatives]), return_inverse=True)
    above, below = ranks[: positives.size], ranks[positives.size :]
    samples = np.empty(draws)
    for draw in range(draws):
        hits = np.bincount(above[generator.integers(0, above.size, above.size)], minlength=values.size)
        misses = np.bincount(below[generator.integers(0, below.size, below.size)], minlength=values.size)
        # A positive beats the negatives of all smaller values and half of those equal to it.
        beaten = np.cumsum(misses) - 0.5 * misses
        samples[draw] = float(hits @ beaten) / (above.size * below.size)
    side = (1.0 - confidence) / 2.0
    low, high = np.quantile(samples, [side, 1.0 - side])
    return Interval(value, float(low), float(high), n)


def order_statistic_index(n: int, epsilon: float, delta: float) -> int | None:
    """How many of `n` benign calibration scores may lie above the gate's threshold.

    Let the threshold be the (r + 1)-th largest benign score; the gate opens strictly above it. The true
    false-open rate is then Beta(r + 1, n - r) distributed, or smaller where scores tie, whatever the
    distribution of the scores. The result is the largest r for which this rate is at most `epsilon` with
    probability at least 1 - `delta` over the draw of the calibration set: P(Binomial(n, epsilon) <= r) <=
    delta.

    Args:
        n: number of benign calibration scores.
        epsilon: highest false-open rate to allow.
        delta: highest probability that the rate is exceeded all the same.

    Returns:
        r >= 0, or None when `n` is too small for any threshold inside the sample (see `smallest_sample`).

    Raises:
        InputError: unless n >= 0, 0 < epsilon < 1 and 0 < delta < 1.
    """
    _check_rates(epsilon, delta)
    if n < 0:
        raise InputError(f"{n} calibration scores: expected a count")
    allowed = np.arange(n)
    possible = int(np.count_nonzero(betaincc(allowed + 1, n - allowed, epsilon) <= delta))
    return possible - 1 if possible else None


def smallest_sample(epsilon: float, delta: float) -> int:
    """The fewest benign scores with which a threshold can be guaranteed: 299 for (0.01, 0.05).

    With fewer, `order_statistic_index` returns None.

    Args:
        epsilon: highest false-open rate to allow.
        delta: highest probability that the rate is exceeded all the same.

    Raises:
        InputError: unless 0 < epsilon < 1 and 0 < delta < 1.
    """
    _check_rates(epsilon, delta)
    n = max(1, math.ceil(math.log(delta) / math.log1p(-epsilon)))
    # Rounding may put the quotient on either side of an integer, so the test itself settles it.
    while order_statistic_index(n, epsilon, delta) is None:
        n += 1
    while n > 1 and order_statistic_index(n - 1, epsilon, delta) is not None:
        n -= 1
    return n


def _auroc(positives: npt.NDArray[np.float64], negatives: npt.NDArray[np.float64]) -> float:
    ordered = np.sort(negatives)
    smaller = np.searchsorted(ordered, positives, side="left")
    not_larger = np.searchsorted(ordered, positives, side="right")
    return float((smaller + not_larger).sum()) / (2.0 * positives.size * negatives.size)


def _by_class(scores: Scores, labels: Labels) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Splits scores `[rows]` into the scores of harmful rows and of harmless rows."""
    values = np.asarray(scores, dtype=np.float64)
    marks = np.asarray(labels)
    if values.ndim != 1 or values.shape != marks.shape:
        raise InputError(f"scores {values.shape} and labels {marks.shape}: expected one label per score")
    if not np.isin(marks, (0, 1)).all():
        raise InputError("labels other than 0 and 1 (False and True): 1 marks a harmful row")
    if np.isnan(values).any():
        missing = int(np.isnan(values).sum())
        raise InputError(
            f"{missing} of {values.size} scores are NaN: expected numbers; check the activations"
        )
    positives, negatives = values[marks == 1], values[marks == 0]
    if positives.size == 0 or negatives.size == 0:
        raise InputError(
            f"{positives.size} harmful and {negatives.size} harmless scores: "
            "expected at least one of each to compare them"
        )
    return positives, negatives


def _check_counts(k: int, n: int, confidence: float) -> None:
    if not 0 <= k <= n:
        raise InputError(f"{k} successes out of {n}: expected 0 <= successes <= trials")
    _check_confidence(confidence)


def _check_confidence(confidence: float) -> None:
    if not 0.0 < confidence < 1.0:
        raise InputError(f"confidence {confidence}: expected a number between 0 and 1, for example 0.95")


def _check_rates(epsilon: float, delta: float) -> None:
    for name, number in (("epsilon", epsilon), ("delta", delta)):
        if not 0.0 < number < 1.0:
            raise InputError(f"{name} {number}: expected a number between 0 and 1, for example 0.01")
