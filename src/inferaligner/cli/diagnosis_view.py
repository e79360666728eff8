"""The results of `doctor` as tables: whether one model can guide another, and scores in another precision."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from inferaligner.cli.tables import titled
from inferaligner.fit.diagnosis import Diagnosis
from inferaligner.fit.operating_point.precision_check import HOLDS, FormatShift
from inferaligner.statistics.intervals import Interval
from inferaligner.storage.model_card import percent

_QUALITY = {"good": "green", "fair": "yellow", "poor": "bold red"}
_BAR = 20


def expectation(diagnosis: Diagnosis) -> Text:
    """The expected quality and the reasons for it, one sentence per line."""
    text = Text.assemble(("Expected quality: ", "bold"), (diagnosis.quality, _QUALITY[diagnosis.quality]))
    for sentence in diagnosis.words:
        text.append(f"\n• {sentence}")
    return text


def tables(diagnosis: Diagnosis) -> list[Table]:
    """Tables of the two models, the distances of their weights, and the layers."""
    pair = titled("target and aligned model", show_header=False)
    for style in ("bold", "", ""):
        pair.add_column(style=style)
    for relation in diagnosis.relations:
        pair.add_row(relation.what, "same" if relation.same else "another", relation.found)
    pair.add_row(
        "target declines", _rate(diagnosis.target_declines), f"of {diagnosis.target_declines.n} harmful"
    )
    pair.add_row("aligned model declines", _rate(diagnosis.aligned_declines), "of the same")
    shown = [pair]
    if diagnosis.distances:
        weights = titled("How far the weights are apart, ‖W − W'‖ / ‖W'‖", ["weight"], ["distance"])
        for kind, distance in diagnosis.distances.items():
            weights.add_row(escape(kind), percent(distance))
        shown.append(weights)
    return [*shown, _layers(diagnosis)]


def shift_table(shifts: Sequence[FormatShift]) -> Table:
    """Scores of held-out prompts at fit time and now."""
    table = titled(
        f"Held-out prompts scored again (the bias holds where at most {percent(HOLDS)} change sides)",
        ["prompts"],
        ["n", "mean shift", "largest", "changed sides", "open, as fitted", "open, now"],
    )
    table.add_column("")
    for one in shifts:
        table.add_row(
            escape(one.group),
            str(one.now.n),
            f"{one.mean:+.3f}",
            f"{one.largest:.3f}",
            str(one.changed),
            _rate(one.before),
            _rate(one.now),
            Text("holds", style="green") if one.holds else Text("moved", style="bold red"),
        )
    return table


def _layers(diagnosis: Diagnosis) -> Table:
    columns = ["layer", "AUROC", "cosine of SRV and SSV"]
    table = titled("by layer of the target", figures=columns, box=None, pad_edge=False)
    table.add_column("", width=_BAR)
    if diagnosis.explained is not None:
        table.add_column("map explains", justify="right")
    for one in diagnosis.layers:
        bar = Text("█" * round(abs(one.cosine) * _BAR), style="cyan" if one.cosine >= 0 else "red")
        explained = [] if one.explained is None else [percent(one.explained)]
        table.add_row(str(one.layer), f"{one.auroc:.3f}", f"{one.cosine:.2f}", bar, *explained)
    return table


def _rate(rate: Interval) -> str:
    return f"{percent(rate.value)} [{percent(rate.low)}, {percent(rate.high)}]"
