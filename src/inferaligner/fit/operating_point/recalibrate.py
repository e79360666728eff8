"""Moves the operating point of an existing artifact; gate weights and vectors stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from inferaligner.artifact import AlignerArtifact
from inferaligner.fit.gate.held_out import rates
from inferaligner.fit.operating_point.benign_traffic import raise_threshold, stored, traffic_record, with_move
from inferaligner.fit.operating_point.threshold import promised_threshold
from inferaligner.fit.options import CONFIDENCE, OWN_LIMIT
from inferaligner.storage.operating_point_record import OperatingPoint, Source


def recalibrate(
    artifact: AlignerArtifact,
    traffic: Mapping[str, Sequence[float]],
    *,
    max_false_open: float | None = None,
    confidence: float | None = None,
    source: Source = "prompts",
) -> AlignerArtifact:
    """Moves the artifact to the operating point that exactly this traffic sets, lower or higher than before.

    Args:
        traffic: scores by name, made by this artifact's gate at its present bias (positive = open).
        max_false_open, confidence: of the bound; None takes the artifact's own, or `OWN_LIMIT` and
            `CONFIDENCE` if it was fitted without traffic of the user's.
        source: where the scores come from, for the history.

    Held-out open rates are counted anew from the artifact's scores. An artifact without such scores (of an
    older version) loses its rates, because they are of another threshold.

    Raises:
        CalibrationError: no scores, or scores that are not finite.
        InputError: a limit or a confidence that is not between 0 and 1.
    """
    before = artifact.operating_point
    limit, sure = promise_asked(artifact, max_false_open, confidence)
    threshold, ranks = promised_threshold(traffic, limit, sure)
    # Scores that were made in service come from batches as they are served.
    measured = artifact.calibration.get("batch_shift") or {}
    allowance = 0.0 if source == "scores" else float(measured.get("largest_shift", 0.0))
    gate = raise_threshold(artifact.gate, threshold + allowance)
    shift = gate.bias - artifact.gate.bias
    moved = {name: [float(score) + shift for score in scores] for name, scores in traffic.items()}
    point = OperatingPoint(
        max_false_open=limit,
        confidence=sure,
        rule="traffic",
        traffic={
            name: traffic_record(scores, gate, ranks[name], "held-out", limit, sure)
            for name, scores in moved.items()
        },
        history=before.history if before is not None else (),
    )
    point = with_move(point, artifact.gate.bias, gate.bias, source)
    calibration = {
        **artifact.calibration,
        "max_false_open": limit,
        "operating_point": stored(point),
        "held_out": _held_out(artifact.calibration, gate.bias, moved),
    }
    return replace(artifact, gate=gate, calibration=calibration)


def promise_asked(
    artifact: AlignerArtifact, max_false_open: float | None, confidence: float | None
) -> tuple[float, float]:
    """The limit and the confidence: as given, else the artifact's own, else the defaults."""
    before = artifact.operating_point
    if max_false_open is None:
        # A limit for the contrast set's prompts is no limit for traffic.
        of_traffic = before is not None and any(t.origin == "held-out" for t in before.traffic.values())
        max_false_open = before.max_false_open if before is not None and of_traffic else OWN_LIMIT
    if confidence is None:
        confidence = before.confidence if before is not None else CONFIDENCE
    return max_false_open, confidence


def _held_out(
    calibration: Mapping[str, Any], bias: float, traffic: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    kept = calibration.get("held_out_scores") or {}
    groups = {name: [score + bias for score in scores] for name, scores in kept.items()}
    figures = rates(groups, traffic)
    area = (calibration.get("held_out") or {}).get("auroc")  # no threshold in it, so it stays
    return {**figures, "auroc": area} if area else figures
