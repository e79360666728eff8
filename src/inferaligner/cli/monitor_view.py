"""The answer monitor in an artifact, as tables and as JSON."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from inferaligner.artifact import AlignerArtifact
from inferaligner.cli.operating_point_view import described, traffic_table
from inferaligner.cli.tables import RATE, rate_cells, titled
from inferaligner.storage.model_card import percent

_CANDIDATES_SHOWN = 5


def monitor_as_json(artifact: AlignerArtifact) -> dict[str, Any]:
    """Key "monitor": layer, window, operating point and measured rates; empty without a monitor."""
    monitor = artifact.monitor
    if monitor is None:
        return {}
    kept = artifact.calibration.get("monitor") or {}
    return {
        "monitor": {
            "kind": monitor.kind,
            "layer": monitor.layer,
            "window": monitor.window,
            "bias": monitor.bias,
            **{name: kept.get(name) for name in ("tokens", "candidates", "held_out")},
            "operating_point": described(artifact.monitor_point),
        }
    }


def monitor_tables(artifact: AlignerArtifact) -> list[Table]:
    """Tables of the candidates, of the answers used for calibration, and of held-out open rates."""
    monitor, point = artifact.monitor, artifact.monitor_point
    if monitor is None:
        return []
    kept = artifact.calibration.get("monitor") or {}
    shown = []
    if kept.get("candidates"):
        shown.append(_candidates(kept))
    if point is not None:
        table = traffic_table(point)
        table.title = f"Monitor: benign answers of up to {kept.get('tokens')} tokens"
        shown.append(table)
    if kept.get("held_out"):
        shown.append(_held_out(kept["held_out"]))
    return shown


def _candidates(kept: dict[str, Any]) -> Table:
    rows = kept["candidates"][:_CANDIDATES_SHOWN]
    table = titled(
        f"Monitors compared by cross-validation (best {len(rows)} of {kept.get('tried')}; the first was "
        "taken)",
        ["direction"],
        ["layer", "window", "opens", "AUROC"],
    )
    for row in rows:
        figures = (percent(row["true_open"]), f"{row['auroc']:.3f}")
        table.add_row(str(row["kind"]), str(row["layer"]), str(row["window"]), *figures)
    return table


def _held_out(rates: dict[str, Any]) -> Table:
    table = titled("Monitor on answers that took no part in fitting it", ["answers"], RATE)
    for name, rate in rates.items():
        table.add_row(Text(name), *rate_cells(rate))
    return table
