"""Pages from `templates/`: one file each that loads nothing, with every value escaped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from inferaligner.statistics.intervals import Interval
from inferaligner.storage.model_card import percent


def render(template: str, *, figures: Mapping[str, str], **context: Any) -> str:
    """The page `template` as HTML.

    `figures` are SVG strings of `reporting.figures` by name; only these values are not escaped.
    """
    environment = Environment(
        loader=PackageLoader("inferaligner.reporting", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unbroken"] = unbroken
    drawn = {name: Markup(svg) for name, svg in figures.items()}
    return environment.get_template(template).render(figures=drawn, **context)


def interval(rate: Interval) -> str:
    """The bounds of a share as per cent."""
    return f"{percent(rate.low)} to {percent(rate.high)}"


def unbroken(text: str) -> str:
    """The text with its per cent signs kept beside their numbers."""
    return text.replace(" %", "\u00a0%")
