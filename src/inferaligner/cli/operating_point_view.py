"""The operating point as tables: traffic, history, the effect of a move, drift."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from inferaligner.artifact import AlignerArtifact
from inferaligner.cli.tables import add_columns, titled
from inferaligner.method.decision import opens
from inferaligner.storage.model_card import percent, promise_words
from inferaligner.storage.operating_point_record import OperatingPoint

if TYPE_CHECKING:
    from inferaligner.fit.operating_point.drift import Drift


def point_as_json(artifact: AlignerArtifact) -> dict[str, Any]:
    """The record without the stored quantiles; empty for artifacts that have none."""
    return described(artifact.operating_point)


def described(point: OperatingPoint | None) -> dict[str, Any]:
    """One operating point as JSON, without the stored quantiles."""
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
    """The effect of a move of the operating point: on the traffic it is set for, and on other prompts."""
    point = after.operating_point
    assert point is not None
    old, new = before.gate.bias, after.gate.bias
    fewer = "fewer" if new < old else "more"
    traffic = traffic_table(point)
    traffic.title = f"Operating point: bias {old:.4g} → {new:.4g}, the gate opens on {fewer} prompts"
    effects = titled("Effect on other prompts", ["prompts"], ["open before", "open now", "n"])
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
    """Live scores against the stored ones; the verdicts are printed below it."""
    table = titled(
        "Live scores against those of the calibration",
        ["live", "against"],
        ["n", "n then", "distance", "p", "open now", f"{percent(confidence)} interval", "limit"],
    )
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
    bound = f"at most, at {percent(point.confidence)} confidence"
    table = titled("Benign traffic at the operating point", ["traffic"], ["open", "of", bound])
    table.add_column(f"promise of {percent(point.max_false_open)}")
    for name, record in point.traffic.items():
        # As Text: a name may hold brackets, which rich would take for markup.
        counts = (str(record.open), str(record.n), percent(record.bound))
        table.add_row(Text(name), *counts, promise_words(record))
    return table


def _history(point: OperatingPoint) -> Table:
    table = titled("Moves of the operating point", ["date"], ["bias before", "bias after"])
    add_columns(table, ["traffic", "from", "promise"])
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
