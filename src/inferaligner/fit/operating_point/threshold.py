"""Where the gate opens: at most a given share of benign traffic may lie above the threshold.

The promise (docs/calibration.md): put the threshold *at* the (r + 1)-th largest of n benign scores, with r
fixed beforehand as the largest for which P(Binomial(n, ε) ≤ r) ≤ 1 - confidence. Then the false-open rate of
the traffic is at most ε with at least that confidence, whatever its distribution, if the n prompts and the
traffic are exchangeable and the gate has seen none of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferaligner.errors import CalibrationError
from inferaligner.fit.options import check_share
from inferaligner.statistics.intervals import order_statistic_index, smallest_sample, upper_bound


@dataclass(frozen=True)
class Rank:
    """Which order statistic bounds a traffic of n prompts.

    `allowed` prompts may lie above the threshold. `bound` is the false-open rate that holds at the
    confidence; `promised` says whether it is no larger than the limit. If n is too small for that, no prompt
    may lie above, and the bound is the least that n allows.
    """

    n: int
    allowed: int
    bound: float
    promised: bool


def rank_for(n: int, max_false_open: float, confidence: float) -> Rank:
    """The rank for n ≥ 1 prompts.

    Raises:
        InputError: a limit or a confidence that is not between 0 and 1.
    """
    check_share("max_false_open", max_false_open)
    check_share("confidence", confidence)
    allowed = order_statistic_index(n, max_false_open, 1.0 - confidence)
    bound = upper_bound(allowed or 0, n, confidence)
    if allowed is None:
        return Rank(n, 0, bound, False)
    return Rank(n, allowed, min(bound, max_false_open), True)


def promised_threshold(
    groups: Mapping[str, Sequence[float]], max_false_open: float, confidence: float
) -> tuple[float, dict[str, Rank]]:
    """The lowest threshold that keeps the promise to every traffic, and the rank of each.

    Each traffic is promised the rate at the confidence on its own; that all m promises hold at once has a
    confidence of at least 1 - m (1 - confidence). A prompt opens when its score is *above* the threshold.

    Raises:
        CalibrationError: no traffic, one without prompts, or scores that are not finite.
    """
    if not groups:
        raise CalibrationError("There is no benign prompt to calibrate the gate on. Give some with `benign`.")
    thresholds, ranks = [], {}
    for name, scores in groups.items():
        if not len(scores):
            raise CalibrationError(f"There is no benign prompt in {name!r}. Give some with `benign`.")
        wrong = sum(not math.isfinite(score) for score in scores)
        if wrong:
            raise CalibrationError(
                f"{wrong} of {len(scores)} scores of {name!r} are NaN or infinite; no threshold can be taken "
                "from them. Check the model's precision, and score the prompts again."
            )
        ranks[name] = rank_for(len(scores), max_false_open, confidence)
        thresholds.append(sorted(scores, reverse=True)[ranks[name].allowed])
    return max(thresholds), ranks


def too_few(name: str, n: int, max_false_open: float, confidence: float) -> str | None:
    """A warning that n prompts are too few for the bound; None if they are enough."""
    rank = rank_for(n, max_false_open, confidence)
    if rank.promised:
        return None
    enough = math.ceil(rank.bound * 1000) / 1000
    return (
        f"{name}: {n} prompts allow a promise of {share(rank.bound)} at best, not of "
        f"{share(max_false_open)}, at {share(confidence)} confidence. The gate is put above all of them, "
        f"without the promise. For {share(max_false_open)} give "
        f"{smallest_sample(max_false_open, 1.0 - confidence)} prompts"
        + (f", or allow more with `max_false_open={enough:g}`." if enough < 1 else ".")
    )


def threshold_for(groups: Mapping[str, Sequence[float]], max_false_open: float) -> float:
    """The lowest score threshold that keeps the share of every group *in hand* at or below the limit.

    A plain quantile, without a bound for prompts to come: for comparing gates.

    Args:
        groups: held-out benign scores by kind of traffic. Each kind has its own limit, because a gate that is
            fine on average can open on mathematics alone. A kind too small for the limit (fewer than
            1 / max_false_open scores) has its largest score as the bound.
    """
    check_share("max_false_open", max_false_open)
    filled = {name: scores for name, scores in groups.items() if len(scores)}
    if not filled:
        raise CalibrationError("There is no benign prompt to calibrate the gate on. Give some with `benign`.")
    return max(_threshold(sorted(scores, reverse=True), max_false_open) for scores in filled.values())


def share(value: float) -> str:
    """A share of one in per cent, to three digits."""
    return f"{100 * value:.3g} %"


def _threshold(descending: list[float], max_false_open: float) -> float:
    allowed = int(len(descending) * max_false_open + 1e-9)
    return descending[min(allowed, len(descending) - 1)]
