"""Moves the operating point of an existing artifact; gate weights and vectors stay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from inferaligner.artifact import AlignerArtifact
from inferaligner.fit.gate.held_out import rates
from inferaligner.fit.operating_point.benign_traffic import describe, raise_threshold, stored, with_move
from inferaligner.fit.operating_point.choice import promised_threshold
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
    """The artifact at the operating point that exactly this traffic sets, lower or higher than before.

    Args:
        traffic: scores by name, made by this artifact's gate at its bias of now (positive = open).
        max_false_open, confidence: of the promise; None takes what the artifact's own traffic was promised,
            and where it was fitted without any, 2 % at 95 %.

    Held-out open rates are taken anew where the artifact has the scores, and left out where it has not
    (artifacts of before they were kept): the old ones would be of another threshold.

    Raises:
        CalibrationError: no scores, scores that are not finite, or shares that are none.
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
            name: describe(scores, gate, ranks[name], "held-out", limit, sure)
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
        # A limit for the contrast set's prompts says nothing of the one that traffic should have.
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
