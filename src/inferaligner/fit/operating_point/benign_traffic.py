"""Puts the gate at its operating point for the traffic in hand, and keeps the record of it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from inferaligner.errors import CalibrationError
from inferaligner.fit.operating_point.threshold import Rank, promised_threshold
from inferaligner.method.decision import opens
from inferaligner.method.gate import GuidanceGate
from inferaligner.prompts.images import Prompt
from inferaligner.statistics.intervals import upper_bound
from inferaligner.statistics.stored_sample import StoredSample
from inferaligner.storage.operating_point_record import Move, OperatingPoint, Origin, Source, TrafficRecord

Traffic = Mapping[str, Sequence[float]]


def settle(
    gate: GuidanceGate,
    contrast: Traffic,
    own: Traffic,
    *,
    max_false_open: float,
    ordinary_limit: float | None = None,
    confidence: float,
    paper: bool = False,
    allowance: float = 0.0,
) -> tuple[GuidanceGate, OperatingPoint, dict[str, list[float]]]:
    """Puts a fresh gate at its operating point, which is never below its zero.

    Args:
        gate: its zero is at the plain quantile of `contrast` (or, the paper's, stays where it is).
        contrast: out-of-fold scores of the labelled ordinary prompts by kind.
        own: scores of the user's traffic by name, made by `gate`.
        max_false_open: the largest share of each of `own` that may open.
        ordinary_limit: the same for `contrast`, for the record; None takes `max_false_open`.
        paper: leave the bias as it is.
        allowance: how far a score may move with the batch that it is computed in. The bound on `own` holds
            for scores that are higher by so much.

    Returns:
        The gate at the operating point, the record of it, and the scores of `own` there.
    """
    ordinary_limit = max_false_open if ordinary_limit is None else ordinary_limit
    moved, ranks = gate, dict[str, Rank]()
    if own and not paper:
        threshold, ranks = promised_threshold(own, max_false_open, confidence)
        if threshold + allowance > 0:
            moved = raise_threshold(gate, threshold + allowance)
    shift = moved.bias - gate.bias
    traffic = {
        name: traffic_record(
            [score + shift for score in scores], moved, ranks.get(name), origin, limit, confidence
        )
        for scored, origin, limit in (
            (contrast, _OUT_OF_FOLD, ordinary_limit),
            (own, _HELD_OUT, max_false_open),
        )
        for name, scores in scored.items()
    }
    point = OperatingPoint(
        max_false_open=max_false_open,
        confidence=confidence,
        rule="paper" if paper else "quantile",
        traffic=traffic,
    )
    return moved, point, {name: [score + shift for score in scores] for name, scores in own.items()}


def raise_threshold(gate: GuidanceGate, threshold: float) -> GuidanceGate:
    """The gate with its zero just above a score of `threshold`, by more than the rounding of float32 sums.

    A prompt whose score equals the threshold must stay closed when it comes again.
    """
    slack = 1e-5 * max(1.0, abs(gate.bias), abs(threshold))
    return gate.with_bias(gate.bias - threshold - slack)


def traffic_record(
    scores: Sequence[float],
    gate: GuidanceGate,
    rank: Rank | None,
    origin: Origin,
    max_false_open: float,
    confidence: float,
) -> TrafficRecord:
    """The artifact's record of one kind of traffic.

    Args:
        scores: by `gate`, bias included.
        rank: the order statistic that set the threshold. None: the threshold was not taken from this traffic.
            Then the bound follows from the number of open prompts, and the rate is promised only for
            held-out scores, because the threshold does not depend on them.
    """
    opened = sum(map(opens, scores))
    if rank is not None:
        bound, promised = rank.bound, rank.promised
    else:
        bound = upper_bound(opened, len(scores), confidence)
        promised = origin == _HELD_OUT and bound <= max_false_open
    stored = StoredSample.of([score - gate.bias for score in scores])
    return TrafficRecord(
        n=len(scores),
        open=opened,
        bound=bound,
        promised=promised,
        origin=origin,
        quantiles=tuple(float(f"{value:.7g}") for value in stored.quantiles),
    )


def with_move(point: OperatingPoint, old_bias: float, new_bias: float, source: Source) -> OperatingPoint:
    """The operating point with this setting of the bias at the end of its history."""
    move = Move(
        date=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        old_bias=old_bias,
        new_bias=new_bias,
        source=source,
        traffic={name: record.n for name, record in point.traffic.items()},
        max_false_open=point.max_false_open,
        confidence=point.confidence,
        promised=point.promised,
    )
    return point.model_copy(update={"history": (*point.history, move)})


def unseen(
    traffic: Mapping[str, Sequence[Prompt]], fitted: Sequence[Prompt]
) -> tuple[dict[str, list[Prompt]], dict[str, int]]:
    """Leaves out the prompts that the gate was fitted on.

    Returns:
        The other prompts by name, and how many of each were left out.

    Raises:
        CalibrationError: a traffic of which nothing is left.
    """
    seen = set(fitted)
    kept = {name: [text for text in texts if text not in seen] for name, texts in traffic.items()}
    for name, texts in traffic.items():
        if len(texts) and not kept[name]:
            raise CalibrationError(
                f"The gate was fitted on every one of the {len(texts)} prompts of {name!r}, so they cannot "
                "show how often it opens on others. Give `benign` prompts that are in no other file."
            )
    return kept, {name: len(texts) - len(kept[name]) for name, texts in traffic.items()}


def stored(point: OperatingPoint) -> dict[str, Any]:
    """The record as JSON, for the artifact."""
    return point.model_dump(mode="json")


_OUT_OF_FOLD: Origin = "out-of-fold"
_HELD_OUT: Origin = "held-out"
