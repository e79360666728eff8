"""Safety against cost by method, inference time, and curves over a setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from inferaligner.reporting.figures.svg import (
    ACCENT,
    GOLD,
    GREY,
    INK,
    LINE,
    SURFACE,
    WARM,
    canvas,
    style,
    to_svg,
)
from inferaligner.statistics.intervals import Interval

_COLOURS = (ACCENT, WARM, GOLD, GREY)
_OTHERS = (INK, WARM, GOLD, GREY)


def tradeoff(
    methods: Mapping[str, tuple[Interval, Interval]],
    *,
    across: str,
    up: str,
    chosen: str | None = None,
    name: str = "tradeoff",
) -> str:
    """One point per method, `(across, up)`, both shares, with the intervals as a cross.

    The method `chosen` is a star above the others, in a colour of its own.
    """
    descriptions = []
    with style():
        figure, axis = canvas(height=3.4)
        others = [method for method in methods if method != chosen]
        for number, (method, (x, y)) in enumerate(methods.items()):
            if method == chosen:
                colour, marker, size, above = ACCENT, "*", 13.0, 6
            else:
                at = others.index(method)
                colour, marker = _OTHERS[at % len(_OTHERS)], "osD^v"[at // len(_OTHERS) % 5]
                size, above = 7.0, 5
            axis.plot([x.low, x.high], [y.value, y.value], color=colour, lw=1.2, alpha=0.5)
            axis.plot([x.value, x.value], [y.low, y.high], color=colour, lw=1.2, alpha=0.5)
            (point,) = axis.plot(
                x.value, y.value, marker, ms=size, mfc=colour, mec=SURFACE, label=method, clip_on=False
            )
            point.set_zorder(above)
            point.set_gid(f"point-{number}")
            descriptions.append(f"{method}: {across} {x.value:.0%}, {up} {y.value:.0%}")
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axis.set_xlabel(across)
        axis.set_ylabel(up)
        axis.grid(True)
        figure.legend(loc="outside lower center", ncols=2, handletextpad=0.3)
        return to_svg(figure, name, title=f"{up} against {across}", description="; ".join(descriptions))


def time_bars(seconds: Mapping[str, Mapping[str, Interval]], *, label: str, name: str = "time") -> str:
    """Seconds per method and state (open, closed, any), first on top, with intervals."""
    bars = [(method, state, s) for method, states in seconds.items() for state, s in states.items()]
    colours = {"open": WARM, "closed": ACCENT, "any": GREY}
    with style():
        figure, axis = canvas(height=0.8 + 0.27 * len(bars))
        for at, (_, state, interval) in enumerate(bars):
            (bar,) = axis.barh(-at, interval.value, height=0.7, color=colours[state], lw=0)
            bar.set_gid(f"bar-{at}")
            axis.plot([interval.low, interval.high], [-at, -at], color=INK, lw=1)
        names = [m if s == "any" else f"{m}, {s}" for m, s, _ in bars]
        axis.set_yticks([-at for at in range(len(bars))], names, color=INK)
        axis.set_ylim(-len(bars) + 0.4, 0.6)
        axis.set_xlim(left=0)
        axis.grid(True, axis="x", color=LINE)
        axis.spines["left"].set_visible(False)
        axis.set_xlabel(label)
        description = "; ".join(f"{n}: {i.value:.3g}" for n, (_, _, i) in zip(names, bars, strict=True))
        return to_svg(figure, name, title=label, description=description)


def curves(
    lines: Mapping[str, Sequence[tuple[float, Interval]]],
    *,
    across: str,
    up: str,
    shares: bool = True,
    name: str = "curves",
) -> str:
    """One curve per name over a number, with its band of intervals: the paper's Figure 4."""
    descriptions = []
    with style():
        figure, axis = canvas(height=3.2)
        for number, (line, points) in enumerate(lines.items()):
            colour = _COLOURS[number % len(_COLOURS)]
            xs = [x for x, _ in points]
            axis.fill_between(
                xs, [p.low for _, p in points], [p.high for _, p in points], color=colour, alpha=0.14, lw=0
            )
            (curve,) = axis.plot(
                xs, [p.value for _, p in points], "o-", ms=4, mec=SURFACE, mew=0.6, color=colour, label=line
            )
            curve.set_gid(f"curve-{number}")
            descriptions.append(f"{line}: " + ", ".join(f"{x:g}: {p.value:.2f}" for x, p in points))
        if shares:
            axis.set_ylim(-0.02, 1.02)
            axis.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axis.set_xlabel(across)
        axis.set_ylabel(up)
        axis.grid(True)
        figure.legend(loc="outside lower center", ncols=2)
        return to_svg(figure, name, title=f"{up} by {across}", description="; ".join(descriptions))
