"""Scores of the gate, ROC, open rates."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from inferaligner.reporting.figures.svg import (
    ACCENT,
    GOLD,
    GREY,
    INK,
    LINE,
    MUTED,
    SURFACE,
    WARM,
    canvas,
    percent_axis,
    style,
    to_svg,
)
from inferaligner.statistics.intervals import Interval, auroc

_GROUP_COLOURS = (WARM, GOLD, ACCENT, GREY)
_CURVE_COLOURS = (ACCENT, GOLD, GREY)
# Scores are in standard deviations of harmless prompts; larger ones are drawn at this limit.
_FURTHEST = 8.0
_BINS = 48


def score_distributions(
    groups: Mapping[str, Sequence[float]],
    *,
    harmful: Collection[str] | None = None,
    name: str = "scores",
    threshold: float = 0.0,
) -> str:
    """Histograms of gate scores, one row per group (first on top), with the threshold between them.

    With `harmful`, the groups of these names have one colour and all other groups another.
    """
    shown = {group: np.asarray(scores, dtype=float) for group, scores in groups.items() if len(scores)}
    everything = np.clip(np.concatenate([*shown.values(), np.array([threshold])]), -_FURTHEST, _FURTHEST)
    edges = np.histogram_bin_edges(everything, bins=_BINS)
    open_shares = {group: _open(scores, threshold) for group, scores in shown.items()}
    with style():
        figure, axis = canvas(height=0.7 + 0.6 * len(shown))
        for row, (group, scores) in enumerate(shown.items()):
            base, colour = -float(row), _GROUP_COLOURS[row % len(_GROUP_COLOURS)]
            if harmful is not None:
                colour = WARM if group in harmful else ACCENT
            counts, _ = np.histogram(np.clip(scores, -_FURTHEST, _FURTHEST), bins=edges)
            tops = base + 0.66 * counts / max(int(counts.max()), 1)
            axis.stairs(tops, edges, baseline=base, fill=True, color=colour, alpha=0.3, lw=0)
            axis.stairs(tops, edges, baseline=base, color=colour, lw=1.0).set_gid(f"group-{row}")
            axis.axhline(base, color=LINE, lw=0.6)
            place: Any = {"xycoords": ("axes fraction", "data"), "va": "top"}
            axis.annotate(group, (0.0, base + 0.9), color=INK, **place)
            axis.annotate(open_shares[group], (1.0, base + 0.9), color=MUTED, ha="right", **place)
        axis.axvline(threshold, color=INK, lw=1.0, ls=(0, (4, 2))).set_gid("threshold")
        axis.set_ylim(-len(shown) + 0.95, 1.0)
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)
        axis.set_xlabel("gate score")
        for side, text, across in (("left", "← closed", 0.0), ("right", "open →", 1.0)):
            below: Any = {
                "xycoords": ("axes fraction", "axes fraction"),
                "textcoords": "offset points",
                "va": "top",
            }
            axis.annotate(text, (across, 0), xytext=(0, -17), ha=side, color=MUTED, **below)
        return to_svg(
            figure,
            name,
            title="Gate scores by kind of prompt",
            description="; ".join(f"{group}: {share}" for group, share in open_shares.items()),
        )


def roc_curves(
    harmful: Sequence[float],
    harmless: Mapping[str, Sequence[float]],
    *,
    name: str = "roc",
    threshold: float = 0.0,
) -> str:
    """ROC of harmful scores against each group of harmless ones, with the operating point on each curve."""
    positives = np.asarray(harmful, dtype=float)
    descriptions = []
    with style():
        figure, axis = canvas(height=3.4)
        axis.plot([0, 1], [0, 1], color=LINE, lw=0.8)
        for row, (group, scores) in enumerate(harmless.items()):
            negatives, colour = np.asarray(scores, dtype=float), _CURVE_COLOURS[row % len(_CURVE_COLOURS)]
            cuts = np.unique(np.concatenate([positives, negatives]))[::-1]
            false_open = [0.0, *(float((negatives >= cut).mean()) for cut in cuts)]
            true_open = [0.0, *(float((positives >= cut).mean()) for cut in cuts)]
            labels = [True] * len(positives) + [False] * len(negatives)
            label = f"against {group}: AUROC {auroc(np.concatenate([positives, negatives]), labels):.3f}"
            (curve,) = axis.plot(false_open, true_open, color=colour, lw=1.6, label=label)
            curve.set_gid(f"curve-{row}")
            at = float((negatives > threshold).mean()), float((positives > threshold).mean())
            (point,) = axis.plot(*at, "o", ms=6.5, mfc=colour, mec=SURFACE, mew=1.2, clip_on=False, zorder=5)
            point.set_gid(f"point-{row}")
            descriptions.append(
                f"{label}; at the threshold {at[1]:.0%} of harmful and {at[0]:.1%} of {group} open"
            )
        axis.set(xlim=(0, 1), ylim=(0, 1.02))
        percent_axis(axis.xaxis)
        percent_axis(axis.yaxis)
        axis.set_xlabel("harmless prompts that open")
        axis.set_ylabel("harmful prompts that open")
        axis.grid(True)
        axis.legend(loc="lower right")
        return to_svg(figure, name, title="ROC of the gate", description=". ".join(descriptions))


def open_rates(
    rates: Mapping[str, Interval], *, name: str = "rates", label: str = "prompts that open"
) -> str:
    """Shares with their intervals, one row per name, first on top."""
    with style():
        figure, axis = canvas(height=0.6 + 0.27 * len(rates))
        for row, rate in enumerate(rates.values()):
            (bar,) = axis.plot([rate.low, rate.high], [-row, -row], color=ACCENT, lw=4, alpha=0.35)
            bar.set_gid(f"interval-{row}")
            (point,) = axis.plot(
                rate.value, -row, "o", ms=5.5, mfc=ACCENT, mec=SURFACE, mew=0.8, clip_on=False, zorder=5
            )
            point.set_gid(f"point-{row}")
        axis.set_yticks([-row for row in range(len(rates))], list(rates), color=INK)
        axis.set_ylim(-len(rates) + 0.4, 0.6)
        axis.set_xlim(0, 1)
        percent_axis(axis.xaxis)
        axis.grid(True, axis="x")
        axis.spines["left"].set_visible(False)
        axis.set_xlabel(label)
        descriptions = (
            f"{kind}: {r.value:.1%} ({r.low:.1%} to {r.high:.1%}, n = {r.n})" for kind, r in rates.items()
        )
        return to_svg(
            figure, name, title=f"{label}, with 95 % intervals", description="; ".join(descriptions)
        )


def _open(scores: npt.NDArray[np.float64], threshold: float) -> str:
    share = 100 * float((scores > threshold).mean())
    return f"{share:.0f} % open" if share >= 10 or share == 0 else f"{share:.1f} % open"
