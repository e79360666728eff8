"""The surface of the strength search: cross-entropy by first layer and strength, a panel per width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log2
from typing import TYPE_CHECKING

from inferaligner.reporting.figures.svg import (
    ACCENT,
    GOLD,
    GREY,
    INK,
    SURFACE,
    WARM,
    WIDTH,
    style,
    to_svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The palest cell must still differ from the page.
_PALEST = 0.06
_WORSE = 0.28
# Marks closer than `_ROOM` octaves are moved aside by `_ASIDE` columns.
_ROOM, _ASIDE = 0.45, 0.5
# Half the height of a cell without a neighbour, in octaves of strength.
_HALF = 0.26


@dataclass(frozen=True)
class Point:
    """One setting on the surface. `number` is its rank among the settings that generated, from 1."""

    layers: Sequence[int]
    strength: float
    cross_entropy: float
    per_layer: bool = False
    number: int | None = None


def strength_surface(
    points: Sequence[Point],
    *,
    unsteered: float,
    chosen: int | None = None,
    gate: int | None = None,
    name: str = "surface",
) -> str:
    """A heat map per width: the darker, the further the cross-entropy lies below `unsteered`; grey above it.

    Numbers mark the settings that generated, the one with the number `chosen` in another colour. Left of the
    dashed line steering would begin below `gate`, the last layer that the gate reads. A setting with a
    strength per layer stands at its mean, in the panel of its width.
    """
    cells = [point for point in points if not point.per_layer]
    marked = [point for point in points if point.number is not None]
    widths = sorted({len(point.layers) for point in cells})
    starts = sorted({point.layers[0] for point in cells})
    best = min((point.cross_entropy for point in cells), default=unsteered)
    most = max(unsteered - best, 0.0)

    def shade(value: float) -> float:
        return _PALEST + (1 - _PALEST) * (max(unsteered - value, 0.0) / most if most else 0.0)

    with style():
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch

        columns = min(2, len(widths))
        rows = -(-len(widths) // columns)
        figure = Figure(figsize=(WIDTH, 0.95 + 1.9 * rows), layout="constrained")
        panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True).flat)
        for axis in panels[len(widths) :]:
            axis.set_visible(False)
        for panel, (axis, width) in enumerate(zip(panels, widths, strict=False)):
            own = [point for point in cells if len(point.layers) == width]
            _cells(axis, own, starts, unsteered, shade, width)
            if gate is not None and starts[0] < gate <= starts[-1]:
                at = sum(start < gate for start in starts) - 0.5
                axis.axvline(at, color=GOLD, lw=1.2, ls=(0, (4, 2))).set_gid(f"gate-{width}")
            axis.set_title(f"{width} layer{'s' * (width > 1)}", loc="left", color=INK, pad=3)
            axis.set_xticks(range(len(starts)), [str(start) for start in starts])
            axis.tick_params(labelbottom=panel + columns >= len(widths))
            axis.spines[["left", "bottom"]].set_visible(False)
        # A block grown by the descent stands in the panel of the nearest width.
        before: dict[tuple[int, int], tuple[float, float]] = {}
        for point in sorted(marked, key=lambda one: one.strength):
            width = min(widths, key=lambda one: abs(one - len(point.layers)))
            y, aside = log2(point.strength), 0.0
            place = width, point.layers[0]
            if place in before:
                # Marks that would lie on each other stand left and right of their column's middle in turn.
                low, side = before[place]
                if y - low < _ROOM:
                    aside = -side if side else _ASIDE
            before[place] = y, aside
            _mark(panels[widths.index(width)], point, starts, chosen, aside)
        figure.supxlabel("first steered layer", size=9)
        figure.supylabel("strength", size=9)
        steps = [most * share for share in (1.0, 0.5, 0.0)] if most else [0.0]
        handles = [
            Patch(facecolor=ACCENT, alpha=shade(unsteered - g), lw=0, label=f"{unsteered - g:.2f}")
            for g in steps
        ]
        handles.append(Patch(facecolor=GREY, alpha=_WORSE, lw=0, label="worse"))
        handles.append(Patch(facecolor=WARM, lw=0, label="chosen"))
        figure.legend(
            handles=handles,
            loc="outside upper right",
            ncols=5,
            handlelength=1.1,
            handleheight=0.9,
            columnspacing=1.2,
        )
        description = f"{len(cells)} settings, the best {best:.2f} against {unsteered:.2f} without steering"
        for point in marked:
            if point.number == chosen:
                description += (
                    f"; chosen: layers {point.layers[0]} to {point.layers[-1]} at {point.strength:.3g}, "
                    f"{point.cross_entropy:.2f}"
                )
        return to_svg(
            figure, name, title="Cross-entropy by first layer, strength and width", description=description
        )


def _cells(
    axis: Axes,
    own: Sequence[Point],
    starts: Sequence[int],
    unsteered: float,
    shade: Callable[[float], float],
    width: int,
) -> None:
    from matplotlib.patches import Rectangle

    heights = [log2(point.strength) for point in own]
    for column, start in enumerate(starts):
        here = sorted((p for p in own if p.layers[0] == start), key=lambda p: p.strength)
        for at, point in enumerate(here):
            y = log2(point.strength)
            low = y - _HALF if at == 0 else (y + log2(here[at - 1].strength)) / 2
            high = y + _HALF if at == len(here) - 1 else (y + log2(here[at + 1].strength)) / 2
            worse = point.cross_entropy > unsteered
            cell = Rectangle(
                (column - 0.47, low + 0.015),
                0.94,
                high - low - 0.03,
                fc=GREY if worse else ACCENT,
                alpha=_WORSE if worse else shade(point.cross_entropy),
                lw=0,
            )
            axis.add_patch(cell).set_gid(f"cell-{width}-{start}-{at}")
    low, high = min(heights), max(heights)
    axis.set(xlim=(-0.6, len(starts) - 0.4), ylim=(low - 0.45, high + 0.45))
    ticks = [value for value in (0.05, 0.1, 0.2, 0.5, 1, 2, 5) if low - 0.4 <= log2(value) <= high + 0.4]
    axis.set_yticks([log2(value) for value in ticks], [f"{value:g}" for value in ticks])


def _mark(axis: Axes, point: Point, starts: Sequence[int], chosen: int | None, aside: float) -> None:
    # Between two columns, for a block that begins between two of the starts.
    below = sum(start < point.layers[0] for start in starts)
    x = float(below) if below < len(starts) and starts[below] == point.layers[0] else below - 0.5
    x, y = x + aside, log2(point.strength)
    low, high = axis.get_ylim()
    axis.set_ylim(min(low, y - 0.35), max(high, y + 0.35))
    colour = WARM if point.number == chosen else INK
    (dot,) = axis.plot(
        x, y, "D" if point.per_layer else "o", ms=8.5, mfc=colour, mec=SURFACE, mew=0.8, zorder=5
    )
    dot.set_gid(f"finalist-{point.number}")
    axis.annotate(
        str(point.number), (x, y), ha="center", va="center_baseline", color=SURFACE, size=6, zorder=6
    )
