"""What the tables of the command line share: titles and columns, and measured rates as cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from inferaligner.storage.model_card import percent

RATE = ("open", "95 % interval", "n")
"""The columns of `rate_cells`."""


def titled(title: str, words: Sequence[str] = (), figures: Sequence[str] = (), **settings: Any) -> Table:
    """A table with the title on the left, columns of words, and then right-justified columns of figures."""
    table = Table(title=title, title_justify="left", **settings)
    add_columns(table, words, figures)
    return table


def add_columns(table: Table, words: Sequence[str] = (), figures: Sequence[str] = ()) -> None:
    """Adds columns of words, and then right-justified columns of figures."""
    for name in words:
        table.add_column(name)
    for name in figures:
        table.add_column(name, justify="right")


def rate_cells(rate: Mapping[str, Any]) -> tuple[str, str, str]:
    """A measured share with its interval, in per cent, and the number of prompts."""
    return percent(rate["value"]), f"{percent(rate['low'])} to {percent(rate['high'])}", str(rate["n"])


def area_cells(area: Mapping[str, Any]) -> tuple[str, str, str]:
    """A measured AUROC with its interval, and the number of prompts."""
    return three(area["value"]), f"{three(area['low'])} to {three(area['high'])}", str(area["n"])


def three(value: float | None) -> str:
    """A number with three decimals, "-" for None."""
    return "-" if value is None else f"{value:.3f}"
