"""How the steering was chosen: vectors by layer, and the surface of the search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inferaligner.reporting.figures.svg import (
    ACCENT,
    GOLD,
    INK,
    SURFACE,
    WARM,
    canvas,
    style,
    to_svg,
)

# The palest cell must still be told from the page.
_PALEST = 0.06


def cosine_by_layer(
    cosines: Sequence[float],
    *,
    steered: Sequence[int] = (),
    gate: Sequence[int] = (),
    name: str = "cosine",
) -> str:
    """Cosine of SRV and SSV per decoder layer, with the layers that are steered and that the gate reads."""
    with style():
        from matplotlib.ticker import MaxNLocator

        figure, axis = canvas(height=2.7)
        floor = min(0.0, *cosines) - 0.05
        for layer in steered:
            axis.axvspan(layer - 0.5, layer + 0.5, color=ACCENT, alpha=0.14, lw=0).set_gid(f"steered-{layer}")
        for layer in gate:
            axis.axvline(layer, color=GOLD, lw=1.2, ls=(0, (4, 2))).set_gid(f"gate-{layer}")
        axis.plot(range(len(cosines)), cosines, color=INK, lw=1.4)
        for layer, value in enumerate(cosines):
            (point,) = axis.plot(layer, value, "o", ms=4, mfc=INK, mec=SURFACE, mew=0.6, zorder=5)
            point.set_gid(f"point-{layer}")
        axis.set(xlim=(-0.7, len(cosines) - 0.3), ylim=(floor, 1.05))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(True, axis="y")
        axis.set_xlabel("decoder layer")
        axis.set_ylabel("cosine(SRV, SSV)")
        # Away from each other: the gate usually reads right below the first steered layer.
        above: Any = {"xycoords": ("data", "axes fraction"), "va": "bottom", "size": 8.5}
        if steered:
            axis.annotate("steered", (min(steered) - 0.5, 1.01), ha="left", color=ACCENT, **above)
        if gate:
            axis.annotate("gate", (min(gate), 1.01), ha="right", color=GOLD, **above)
        told = f"from {cosines[0]:.2f} at layer 0 to {cosines[-1]:.2f} at layer {len(cosines) - 1}"
        if steered:
            told += f"; {min(cosines[at] for at in steered):.2f} at the least among the steered layers"
        return to_svg(figure, name, title="Cosine of SRV and SSV by layer", description=told)


def search_surface(
    trials: Sequence[tuple[Sequence[int], float]],
    *,
    unsteered: float,
    chosen: Sequence[int],
    name: str = "search",
) -> str:
    """Cross-entropy by block of layers: one cell per first layer and width, its best strength taken.

    `trials` are `(layers, cross-entropy)`; a cell is the darker, the further it lies below `unsteered`.
    """
    best: dict[tuple[int, int], float] = {}
    for layers, value in trials:
        cell = (layers[0], len(layers))
        best[cell] = min(value, best.get(cell, float("inf")))
    starts, widths = sorted({start for start, _ in best}), sorted({width for _, width in best})
    gains = {cell: max(0.0, unsteered - value) for cell, value in best.items()}
    most = max(gains.values(), default=0.0)
    with style():
        from matplotlib.patches import Patch, Rectangle

        def shade(gain: float) -> float:
            return _PALEST + (1 - _PALEST) * (gain / most if most else 0.0)

        figure, axis = canvas(height=1.05 + 0.38 * len(widths))
        for (start, width), gain in gains.items():
            corner = starts.index(start) - 0.47, widths.index(width) - 0.46
            cell_gid = f"cell-{start}-{width}"
            axis.add_patch(Rectangle(corner, 0.94, 0.92, fc=ACCENT, alpha=shade(gain), lw=0)).set_gid(
                cell_gid
            )
        at = (chosen[0], len(chosen))
        if at in gains:
            corner = starts.index(at[0]) - 0.47, widths.index(at[1]) - 0.46
            axis.add_patch(Rectangle(corner, 0.94, 0.92, fill=False, ec=WARM, lw=2, zorder=5)).set_gid(
                "chosen"
            )
        axis.set(xlim=(-0.6, len(starts) - 0.4), ylim=(-0.6, len(widths) - 0.4))
        axis.set_xticks(range(len(starts)), [str(start) for start in starts])
        axis.set_yticks(range(len(widths)), [str(width) for width in widths])
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.set_xlabel("first steered layer")
        axis.set_ylabel("layers steered")
        steps = [most * share for share in (1.0, 0.5, 0.0)] if most else [0.0]
        handles = [Patch(facecolor=ACCENT, alpha=shade(g), lw=0, label=f"{unsteered - g:.2f}") for g in steps]
        handles.append(Patch(facecolor="none", edgecolor=WARM, lw=1.6, label="chosen"))
        figure.legend(handles=handles, loc="outside upper right", ncols=4, handlelength=1.2, handleheight=0.9)
        told = f"best {unsteered - most:.2f} against {unsteered:.2f} without steering"
        return to_svg(figure, name, title="Cross-entropy by block of steered layers", description=told)
