"""Options that a command receives together, as one value.

A group is a frozen dataclass whose fields are made by `flag`:

    @dataclass(frozen=True)
    class ModelOptions:
        panel: ClassVar = "How to load the model"

        dtype: str = flag("auto", metavar="DTYPE", help="The precision.")

    def score(*, target: Target, model: ModelOptions) -> None: ...

`expand_groups(score)` has the option `--dtype` where `score` has the parameter `model`; the help shows it in
the panel of that name. Options that are not the fields of such a class are
an `OptionGroup` in the annotation: `Annotated[FitChoices, OptionGroup(...)]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from functools import wraps
from typing import Annotated, Any, TypeVar, get_args, get_type_hints

import typer

REQUIRED: Any = MISSING
"""The default of an option that the user must give."""

T = TypeVar("T")


def flag(default: T, *names: str, **settings: Any) -> T:
    """A field of a group.

    Args:
        default: of the field and of the option; `REQUIRED` is none.
        names: of the option; without any, it is called as the field.
        settings: of `typer.Option`.
    """
    made: T = field(default=default, metadata={"option": typer.Option(*names, **settings)})
    return made


@dataclass(frozen=True)
class OptionGroup:
    """Options of the command line, and the function that makes one value of them.

    Attributes:
        options: parameters as typer expects them.
        make: is called with the options as keywords.
    """

    options: Sequence[inspect.Parameter]
    make: Callable[..., Any]


def option(name: str, type_: Any, info: Any, default: Any) -> inspect.Parameter:
    """The parameter of one option; `info` is a `typer.Option`."""
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name, kind, default=default, annotation=Annotated[type_, info])


def group_of(cls: type[Any], *, only: Sequence[str] | None = None) -> OptionGroup:
    """The options that the fields of a dataclass declare.

    Args:
        cls: the dataclass, which makes the value.
        only: names of the fields that become options; the others keep their defaults. None is all.
    """
    hints = get_type_hints(cls)
    options = []
    for each in fields(cls):
        if only is None or each.name in only:
            info = copy(each.metadata["option"])
            info.rich_help_panel = getattr(cls, "panel", None)
            default = inspect.Parameter.empty if each.default is MISSING else each.default
            options.append(option(each.name, hints[each.name], info, default))
    return OptionGroup(options, cls)


def expand_groups(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of each group in place of the parameter that receives the group.

    Args:
        command: a function for typer; the parameters that receive groups are keyword-only.
    """
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, OptionGroup] = {}
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        stated = [each for each in get_args(hint) if isinstance(each, OptionGroup)]
        if stated or is_dataclass(hint):
            group = stated[0] if stated else group_of(hint)
            groups[parameter.name] = group
            parameters += group.options
        else:
            parameters.append(parameter.replace(annotation=hint, kind=inspect.Parameter.KEYWORD_ONLY))

    @wraps(command)
    def expanded(**given: Any) -> None:
        values = {
            name: group.make(**{each.name: given.pop(each.name) for each in group.options})
            for name, group in groups.items()
        }
        command(**given, **values)

    expanded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    expanded.__annotations__ = {each.name: each.annotation for each in parameters}
    return expanded
