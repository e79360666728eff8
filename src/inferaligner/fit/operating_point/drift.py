"""Whether live traffic still looks like the traffic that the operating point was set for.

Two separate questions: are the scores distributed as they were (Kolmogorov-Smirnov), and does the gate open
more often than its limit (exact binomial bound)? Live traffic holds harmful prompts too, which should open;
so a verdict says what to look at, not what is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import CalibrationError, InputError
from inferaligner.fit.operating_point.contrast_traffic import POOLED
from inferaligner.fit.operating_point.threshold import share
from inferaligner.method.decision import opens
from inferaligner.statistics.intervals import Interval, clopper_pearson
from inferaligner.statistics.stored_sample import distance, kolmogorov_p
from inferaligner.storage.operating_point_record import OperatingPoint, TrafficRecord

SHIFT_LEVEL = 0.01
"""Below this p value the distributions count as different: one false alarm in a hundred checks."""


@dataclass(frozen=True)
class Drift:
    """Live scores of one name against the calibration scores in the artifact."""

    name: str
    against: tuple[str, ...]  # the stored traffics, pooled
    n: int
    n_then: int
    distance: float  # Kolmogorov-Smirnov, short of the exact one by 0.01 at most
    p_value: float
    open: Interval  # at the artifact's confidence
    limit: float  # the false-open rate that the artifact allows
    promised: bool
    shifted: bool
    exceeded: bool
    verdict: str


def drift_of(
    artifact: AlignerArtifact, name: str, scores: Sequence[float], against: str | None = None
) -> Drift:
    """Compares live scores, made at the artifact's bias of now, with the stored ones.

    `against` names a stored traffic; None takes all of the user's, pooled, or else the contrast set's.

    Raises:
        CalibrationError: the artifact holds no calibration scores.
        InputError: no scores, scores that are not finite, or a traffic that is not stored.
    """
    point = artifact.operating_point
    if point is None or not point.traffic:
        raise CalibrationError(
            "This aligner holds no calibration scores to compare with: it was made before they were kept, or "
            "without any benign traffic. Set its operating point with prompts first: "
            "inferaligner calibrate DIR --benign FILE."
        )
    if not len(scores) or not all(math.isfinite(score) for score in scores):
        raise InputError(f"{name}: no scores, or some that are NaN or infinite; expected one number per row.")
    chosen = _reference(point, name, against)
    bias = artifact.gate.bias
    samples = [record.sample for record in chosen.values()]
    then = sum(sample.n for sample in samples)
    apart = distance(samples, [score - bias for score in scores])
    p_value = kolmogorov_p(apart, then, len(scores))
    opened = clopper_pearson(sum(map(opens, scores)), len(scores), point.confidence)
    promised = all(record.promised for record in chosen.values())
    limit = max(
        point.max_false_open if r.promised else max(r.bound, point.max_false_open) for r in chosen.values()
    )
    shifted, exceeded = p_value < SHIFT_LEVEL, opened.low > limit
    return Drift(
        name,
        tuple(chosen),
        len(scores),
        then,
        apart,
        p_value,
        opened,
        limit,
        promised,
        shifted,
        exceeded,
        _verdict(opened, limit, shifted, exceeded),
    )


def _reference(point: OperatingPoint, name: str, against: str | None) -> Mapping[str, TrafficRecord]:
    if against is not None:
        if against not in point.traffic:
            raise InputError(
                f"{against!r} is no traffic that this aligner was calibrated on; it knows "
                f"{', '.join(repr(known) for known in point.traffic)}."
            )
        return {against: point.traffic[against]}
    if name in point.traffic:
        return {name: point.traffic[name]}
    if point.held_out:
        return point.held_out
    # The pool holds every kind already.
    return {POOLED: point.traffic[POOLED]} if POOLED in point.traffic else point.traffic


def _verdict(opened: Interval, limit: float, shifted: bool, exceeded: bool) -> str:
    rate = f"{share(opened.value)} open (at least {share(opened.low)})"
    if exceeded:
        return (
            f"EXCEEDED: {rate}, more than the {share(limit)} the operating point stands for. Look at what "
            "opens the gate: if it is benign, calibrate again with fresh prompts; if not, the gate works."
        )
    if shifted:
        return (
            f"SHIFTED: the scores are distributed otherwise than at calibration, although "
            f"{share(opened.value)} open, which is not clearly more than {share(limit)}. "
            "The operating point was set for other traffic; calibrate again with fresh prompts."
        )
    if opened.high > limit:
        return (
            f"NO DRIFT SEEN: distributed as at calibration, {share(opened.value)} open. {opened.n} scores "
            f"are too few to confirm the {share(limit)} (up to {share(opened.high)} is possible)."
        )
    return (
        f"NO DRIFT: distributed as at calibration, {share(opened.value)} open, at most {share(opened.high)}."
    )
