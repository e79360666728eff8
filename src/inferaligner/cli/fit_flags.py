"""The flags of `fit`: one for each field of `FitOptions`, with the field's type, default and description.

This file adds what a command line needs besides: panel, metavar, the smallest number, and how text is read.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import Field, dataclass, fields
from typing import Annotated, Any, cast, get_type_hints

import typer

from inferaligner.cli.flag_names import in_flags
from inferaligner.cli.layer_ranges import read_layers
from inferaligner.cli.option_groups import OptionGroup, option
from inferaligner.fit.options import FitChoices, FitOptions

PROMPTS, CHOICES = "Prompts", "Choices (default: made from data)"
MAP = "An aligned model of another width or depth"


@dataclass(frozen=True)
class Flag:
    """One flag. `shows_default`: whether the help prints the default; else the description names it."""

    panel: str
    metavar: str | None = None
    name: str | None = None
    least: int | None = None
    reader: Callable[[str], Any] | None = None
    shows_default: bool = False


FLAGS = {
    "pictures": Flag(PROMPTS, shows_default=True),
    "system": Flag(PROMPTS, "TEXT"),
    "max_false_open": Flag(CHOICES, "SHARE"),
    "confidence": Flag(CHOICES, "SHARE", shows_default=True),
    "gate_layer": Flag(CHOICES, least=0),
    "steer_layers": Flag(CHOICES, "LAYERS", reader=read_layers),
    "strength": Flag(CHOICES),
    "positions": Flag(CHOICES),
    "monitor": Flag(CHOICES),
    "monitor_tokens": Flag(CHOICES, "N", least=1),
    "paper": Flag(CHOICES),
    "carry": Flag(MAP),
    "map_kind": Flag(MAP, name="--map"),
    "match_layers": Flag(MAP),
    "accept_poor_map": Flag(MAP),
}
_OTHERS = {"benign": "--benign"}
"""Flags that descriptions name, and that are no fields."""


def flag_name(field: str) -> str:
    """The flag of a field of `FitOptions`."""
    return FLAGS[field].name or f"--{field.replace('_', '-')}"


def _parameter(field: Field[Any]) -> inspect.Parameter:
    flag = FLAGS[field.name]
    hint = get_type_hints(FitOptions)[field.name]
    switch = hint is bool
    default = field.default if flag.shows_default or switch else None
    info = typer.Option(
        flag_name(field.name),
        help=in_flags(field.metadata["help"], {name: flag_name(name) for name in FLAGS} | _OTHERS),
        metavar=flag.metavar,
        min=flag.least,
        parser=flag.reader,
        rich_help_panel=flag.panel,
        show_default=flag.shows_default or switch,
    )
    if flag.reader is not None:
        hint = object | None
    elif default is None:
        hint = hint | None
    return option(field.name, hint, info, default)


def _given(**values: Any) -> FitChoices:
    """The choices that the user gave, and those whose default the help shows."""
    chosen = {name: value for name, value in values.items() if value is not None and value is not False}
    return cast(FitChoices, chosen)


Choices = Annotated[FitChoices, OptionGroup([_parameter(each) for each in fields(FitOptions)], _given)]
"""The parameter of `fit` that receives the choices."""
