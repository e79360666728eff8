"""Where the gate opens: at most a given share of benign traffic may lie above the threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inferaligner.errors import CalibrationError


def threshold_for(groups: Mapping[str, Sequence[float]], max_false_open: float) -> float:
    """The lowest score threshold that keeps the false-open rate of every group at or below the limit.

    `groups` maps a kind of traffic to its held-out benign scores; a prompt opens when its score is *above*
    the threshold. Each group has its own limit, because a gate that is fine on average can fire on
    mathematics alone. A group too small for the limit (fewer than 1 / max_false_open scores) has its
    largest score as the bound.
    """
    if not 0 < max_false_open < 1:
        raise CalibrationError(
            f"--max-false-open is {max_false_open}; expected a share between 0 and 1, such as 0.01 for 1 %."
        )
    filled = {name: scores for name, scores in groups.items() if len(scores)}
    if not filled:
        raise CalibrationError(
            "There is no benign prompt to calibrate the gate on. Give some with --benign FILE."
        )
    return max(_threshold(sorted(scores, reverse=True), max_false_open) for scores in filled.values())


def _threshold(descending: list[float], max_false_open: float) -> float:
    allowed = int(len(descending) * max_false_open + 1e-9)
    return descending[min(allowed, len(descending) - 1)]
