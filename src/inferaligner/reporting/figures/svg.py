"""A matplotlib figure as SVG for a page: text stays text, colours follow the page's light or dark scheme.

Figures are drawn in the colours of `PALETTE`; `to_svg` turns each into a CSS variable of that name, with the
light colour as the value where no page defines it, so that a figure saved on its own still has colours.
"""

from __future__ import annotations

import io
import re
from contextlib import AbstractContextManager
from html import escape
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from inferaligner.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Name of the CSS variable: its light colour. All differ, because `to_svg` finds the variable by the colour.
# The dark colours are in templates/style.css.
PALETTE = {
    "ink": "#1d2129",
    "muted": "#59616e",
    "line": "#dcdfe4",
    "surface": "#ffffff",
    "accent": "#1f5fa8",
    "warm": "#bf4e1a",
    "gold": "#8f6a00",
    "grey": "#8b929d",
}
INK, MUTED, LINE, SURFACE = (PALETTE[name] for name in ("ink", "muted", "line", "surface"))
ACCENT, WARM, GOLD, GREY = (PALETTE[name] for name in ("accent", "warm", "gold", "grey"))

# Inches. A figure fills a phone's width at about its natural size, and half the width of a page on a screen.
WIDTH, HEIGHT = 4.3, 3.0

_SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "inferaligner",  # the same figure gives the same file
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": LINE,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
}


def require_matplotlib() -> None:
    """Raises `MissingExtraError` without matplotlib; call it before long work that ends in figures."""
    if find_spec("matplotlib") is None:
        raise MissingExtraError(
            'Figures need matplotlib, which is not installed. Get it with: pip install "inferaligner[report]"'
        )


def style() -> AbstractContextManager[None]:
    """The settings that every figure is drawn under."""
    require_matplotlib()
    import matplotlib

    settings: Any = _SETTINGS
    context: AbstractContextManager[None] = matplotlib.rc_context(settings)
    return context


def canvas(*, width: float = WIDTH, height: float = HEIGHT) -> tuple[Figure, Axes]:
    """A figure with one pair of axes; call it under `style()`."""
    # Not pyplot: it keeps every figure alive and looks for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def percent_axis(axis: Axis) -> None:
    """Ticks at quarters, written as per cent."""
    axis.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "25 %", "50 %", "75 %", "100 %"])


def to_svg(figure: Figure, name: str, *, title: str, description: str) -> str:
    """The figure as an `<svg>` element to stand inside HTML; call it under `style()`.

    Args:
        name: unique on the page; every id in the figure begins with it.
        title, description: for readers who do not see the figure.
    """
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(url\(|href=")#', rf"\g<1>#{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]+(; )?", "", svg)  # the page's own font
    svg = re.sub(r"[ \t]*<style type=\"text/css\">.*?</style>\n?", "", svg, flags=re.DOTALL)
    for variable, colour in PALETTE.items():
        svg = svg.replace(colour, f"var(--{variable}, {colour})")
    view = re.search(r'viewBox="[^"]+"', svg)
    assert view is not None
    head = (
        f'<svg class="figure" role="img" aria-labelledby="{name}-title {name}-description" {view[0]} '
        'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        'font-family="system-ui, sans-serif" stroke-linejoin="round">\n'
        f'<title id="{name}-title">{escape(title)}</title>\n'
        f'<desc id="{name}-description">{escape(description)}</desc>'
    )
    return re.sub(r"<svg\b[^>]*>", lambda match: head, svg, count=1).strip()
