"""Shares of refusal, compliance and gibberish as stacked bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from inferaligner.reporting.figures.svg import (
    ACCENT,
    GOLD,
    GREY,
    INK,
    SURFACE,
    canvas,
    percent_axis,
    style,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {"refusal": ACCENT, "compliance": GOLD, "gibberish": GREY}
# The share of a bar's length that a character takes; a number without room is not written.
_CHARACTER = 0.036


def outcome_bars(groups: Mapping[str, Mapping[str, Mapping[str, int]]], *, name: str = "outcomes") -> str:
    """Counts of answers as shares, with the counts written in: `groups[suite][method][outcome]`."""
    bars = sum(len(methods) for methods in groups.values())
    ticks, descriptions, y, bar = [], [], 0.0, 0
    with style():
        figure, axis = canvas(height=0.85 + 0.27 * (bars + 1.15 * len(groups)))
        for suite, methods in groups.items():
            axis.annotate(
                suite, (0.0, y), xycoords=("axes fraction", "data"), va="center", color=INK, weight="bold"
            )
            y -= 0.9
            for method, counts in methods.items():
                total = max(sum(counts.values()), 1)
                _stack(axis, y, {outcome: n / total for outcome, n in counts.items()}, bar, counts)
                ticks.append((y, method))
                descriptions.append(
                    f"{suite}, {method}: {', '.join(f'{n} {outcome}' for outcome, n in counts.items())}"
                )
                y, bar = y - 1.0, bar + 1
            y -= 0.25
        _finish(figure, axis, ticks, bottom=y + 0.5, label="share of answers")
        return to_svg(figure, name, title="Outcomes of the answers", description="; ".join(descriptions))


def finalists(
    trials: Sequence[tuple[str, Mapping[str, float]]], *, chosen: int | None = None, name: str = "finalists"
) -> str:
    """Outcome shares of steering settings, `(setting, {outcome: share})`, first on top; one may be marked."""
    with style():
        figure, axis = canvas(height=0.85 + 0.27 * len(trials))
        ticks, descriptions = [], []
        for bar, (setting, shares) in enumerate(trials):
            mark = " (chosen)" if bar == chosen else ""
            _stack(
                axis,
                -float(bar),
                shares,
                bar,
                {outcome: f"{100 * share:.0f} %" for outcome, share in shares.items()},
            )
            ticks.append((-float(bar), setting + mark))
            descriptions.append(
                f"{setting}{mark}: {', '.join(f'{share:.0%} {outcome}' for outcome, share in shares.items())}"
            )
        _finish(figure, axis, ticks, bottom=-len(trials) + 0.4, label="share of answers, gate held open")
        for text, bar in zip(axis.get_yticklabels(), range(len(trials)), strict=True):
            if bar == chosen:
                text.set_fontweight("bold")
        return to_svg(
            figure,
            name,
            title="Steering settings that were tried by generating",
            description="; ".join(descriptions),
        )


def _stack(
    axis: Axes, y: float, shares: Mapping[str, float], bar: int, numbers: Mapping[str, object]
) -> None:
    left = 0.0
    for outcome, colour in COLOURS.items():
        share = float(shares.get(outcome, 0.0))
        if share > 0:
            (part,) = axis.barh(y, share, left=left, height=0.72, color=colour, ec=SURFACE, lw=0.8)
            part.set_gid(f"bar-{bar}-{outcome}")
        number = str(numbers.get(outcome, ""))
        if share > _CHARACTER * len(number):
            axis.text(
                left + share / 2,
                y - 0.03,
                number,
                color=SURFACE,
                ha="center",
                va="center",
                size=8,
            )
        left += share


def _finish(
    figure: Figure, axis: Axes, ticks: Sequence[tuple[float, str]], *, bottom: float, label: str
) -> None:
    from matplotlib.patches import Patch

    axis.set_yticks([y for y, _ in ticks], [text for _, text in ticks], color=INK)
    axis.set_ylim(bottom, 0.6)
    axis.set_xlim(0, 1)
    percent_axis(axis.xaxis)
    axis.spines["left"].set_visible(False)
    axis.set_xlabel(label)
    handles = [Patch(facecolor=colour, label=outcome) for outcome, colour in COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3, handlelength=1, handleheight=0.9)
