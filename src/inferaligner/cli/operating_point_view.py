"""The operating point as tables: traffic, history, the effect of a move, drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from inferaligner.artifact import AlignerArtifact
from inferaligner.method.decision import opens
from inferaligner.storage.model_card import percent, promise_words
from inferaligner.storage.operating_point_record import OperatingPoint

if TYPE_CHECKING:
    from inferaligner.fit.operating_point.drift import Drift


def point_as_json(artifact: AlignerArtifact) -> dict[str, Any]:
    """The record without the stored quantiles; empty for artifacts of before there was one."""
    return described(artifact.operating_point)


def described(point: OperatingPoint | None) -> dict[str, Any]:
    """The same of any operating point."""
    if point is None:
        return {}
    return {
        **point.model_dump(mode="json", exclude={"traffic": {"__all__": {"quantiles"}}}),
        "promised": point.promised,
        "joint_confidence": point.joint_confidence,
    }


def point_tables(artifact: AlignerArtifact) -> list[Table]:
    """The traffic at the operating point, and the history if it was moved."""
    point = artifact.operating_point
    if point is None:
        return []
    return [*([traffic_table(point)] if point.traffic else []), *([_history(point)] if point.history else [])]


def move_tables(before: AlignerArtifact, after: AlignerArtifact) -> list[Table]:
    """What a move of the operating point changes: for the traffic it is set for, and elsewhere."""
    point = after.operating_point
    assert point is not None
    old, new = before.gate.bias, after.gate.bias
    fewer = "fewer" if new < old else "more"
    traffic = traffic_table(point)
    traffic.title = f"Operating point: bias {old:.4g} → {new:.4g}, the gate opens on {fewer} prompts"
    effects = Table(title="Effect on other prompts", title_justify="left")
    effects.add_column("prompts")
    for name in ("open before", "open now", "n"):
        effects.add_column(name, justify="right")
    for name, scores in (after.calibration.get("held_out_scores") or {}).items():
        counts = [sum(opens(score + bias) for score in scores) / len(scores) for bias in (old, new)]
        effects.add_row(Text(f"held out: {name}"), *map(percent, counts), str(len(scores)))
    former = before.operating_point
    for name, record in (former.traffic if former is not None else {}).items():
        if name not in point.traffic:
            spans = [record.sample.above(-bias) for bias in (old, new)]
            words = [f"{percent(low)} to {percent(high)}" for low, high in spans]
            effects.add_row(Text(f"calibrated for before: {name}"), *words, str(record.n))
    return [traffic, effects] if effects.row_count else [traffic]


def drift_table(drifts: Sequence[Drift], confidence: float) -> Table:
    """Live scores against the stored ones; the verdicts are told apart from it."""
    table = Table(title="Live scores against those of the calibration", title_justify="left")
    for name in ("live", "against"):
        table.add_column(name)
    for name in ("n", "n then", "distance", "p", "open now", f"{percent(confidence)} interval", "limit"):
        table.add_column(name, justify="right")
    for drift in drifts:
        table.add_row(
            Text(drift.name),
            Text(", ".join(drift.against)),
            str(drift.n),
            str(drift.n_then),
            f"{drift.distance:.3f}",
            f"{drift.p_value:.3g}",
            percent(drift.open.value),
            f"{percent(drift.open.low)} to {percent(drift.open.high)}",
            f"{percent(drift.limit)}{'' if drift.promised else ' (not promised)'}",
        )
    return table


def traffic_table(point: OperatingPoint) -> Table:
    """Open counts and bounds of each traffic."""
    table = Table(title="Benign traffic at the operating point", title_justify="left")
    table.add_column("traffic")
    for name in ("open", "of", f"at most, at {percent(point.confidence)} confidence"):
        table.add_column(name, justify="right")
    table.add_column(f"promise of {percent(point.max_false_open)}")
    for name, record in point.traffic.items():
        # As Text: a name may hold brackets, which rich would take for markup.
        counts = (str(record.open), str(record.n), percent(record.bound))
        table.add_row(Text(name), *counts, promise_words(record))
    return table


def _history(point: OperatingPoint) -> Table:
    table = Table(title="Moves of the operating point", title_justify="left")
    table.add_column("date")
    for name in ("bias before", "bias after"):
        table.add_column(name, justify="right")
    for name in ("traffic", "from", "promise"):
        table.add_column(name)
    for move in point.history:
        kept = f"{percent(move.max_false_open)} at {percent(move.confidence)}"
        table.add_row(
            move.date,
            f"{move.old_bias:.6g}",
            f"{move.new_bias:.6g}",
            Text(", ".join(f"{name} ({n})" for name, n in move.traffic.items())),
            move.source,
            kept if move.promised else f"{kept}: not for all",
        )
    return table
