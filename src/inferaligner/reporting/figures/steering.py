"""The steering vectors by layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inferaligner.reporting.figures.svg import (
    ACCENT,
    GOLD,
    INK,
    SURFACE,
    canvas,
    style,
    to_svg,
)


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
        description = f"from {cosines[0]:.2f} at layer 0 to {cosines[-1]:.2f} at layer {len(cosines) - 1}"
        if steered:
            description += f"; {min(cosines[at] for at in steered):.2f} at the least among the steered layers"
        return to_svg(figure, name, title="Cosine of SRV and SSV by layer", description=description)
