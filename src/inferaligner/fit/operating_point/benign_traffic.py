"""Puts the gate at its operating point for the traffic in hand, and keeps the record of it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from inferaligner.errors import CalibrationError
from inferaligner.fit.gate.contrast_rule import CONTRAST_RULE, ContrastRule, contrast_threshold
from inferaligner.fit.operating_point.choice import Rank, promised_threshold
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
    rule: ContrastRule = CONTRAST_RULE,
    allowance: float = 0.0,
) -> tuple[GuidanceGate, OperatingPoint, dict[str, list[float]]]:
    """The operating point of a fresh gate, whose zero is at the plain quantile (or, the paper's, stays).

    `contrast` are out-of-fold scores, bounded by `ordinary_limit` (None: by the same as `own`); `own` is the
    user's traffic scored by the gate itself, bounded by `max_false_open`. The threshold is the largest that
    any of them asks for. `allowance` is how far a score may move with the batch that it is computed in: the
    promise for `own` holds for scores that are higher by so much. Returns the gate there, the record, and the
    scores of `own` there.
    """
    ordinary_limit = max_false_open if ordinary_limit is None else ordinary_limit
    moved, ranks = gate, dict[str, Rank]()
    if not paper:
        threshold, ranks = contrast_threshold(contrast, ordinary_limit, confidence, rule)
        if own:
            for_own, own_ranks = promised_threshold(own, max_false_open, confidence)
            threshold, ranks = max(threshold, for_own + allowance), {**ranks, **own_ranks}
        if threshold > 0:
            moved = raise_threshold(gate, threshold)
    shift = moved.bias - gate.bias
    traffic = {
        name: describe([score + shift for score in scores], moved, ranks.get(name), origin, limit, confidence)
        for scored, origin, limit in (
            (contrast, _OUT_OF_FOLD, ordinary_limit),
            (own, _HELD_OUT, max_false_open),
        )
        for name, scores in scored.items()
    }
    point = OperatingPoint(
        max_false_open=max_false_open,
        confidence=confidence,
        rule="paper" if paper else rule,
        traffic=traffic,
    )
    return (
        moved,
        point,
        {name: [score + shift for score in scores] for name, scores in own.items()},
    )


def raise_threshold(gate: GuidanceGate, threshold: float) -> GuidanceGate:
    """The gate with its zero just above a score of `threshold`, by more than float32 sums are off.

    A score that *is* the threshold must stay closed when the prompt comes again.
    """
    slack = 1e-5 * max(1.0, abs(gate.bias), abs(threshold))
    return gate.with_bias(gate.bias - threshold - slack)


def describe(
    scores: Sequence[float],
    gate: GuidanceGate,
    rank: Rank | None,
    origin: Origin,
    max_false_open: float,
    confidence: float,
) -> TrafficRecord:
    """The record of one traffic, from its scores by `gate` (bias included).

    `rank` None: the threshold was not taken from this traffic. Then the bound is that of the count found,
    and there is a promise only where the scores are held out: only then the threshold knows nothing of them.
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
    """The prompts that no gate was fitted on, by name, and how many of each were left out for it.

    Raises:
        CalibrationError: a traffic of which nothing is left.
    """
    seen = set(fitted)
    kept = {name: [text for text in texts if text not in seen] for name, texts in traffic.items()}
    for name, texts in traffic.items():
        if len(texts) and not kept[name]:
            raise CalibrationError(
                f"The gate was fitted on every one of the {len(texts)} prompts of {name!r}, so they cannot "
                "tell how often it opens on others. Give prompts of --benign that are in no other file."
            )
    return kept, {name: len(texts) - len(kept[name]) for name, texts in traffic.items()}


def stored(point: OperatingPoint) -> dict[str, Any]:
    """For the artifact."""
    return point.model_dump(mode="json")


_OUT_OF_FOLD: Origin = "out-of-fold"
_HELD_OUT: Origin = "held-out"
