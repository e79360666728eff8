"""All methods there are, and the one that a user names.

Every module of this folder that has a `NAME` and a `make(bench, option)` is one; a new file is a new method.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from inferaligner.errors import InputError
from inferaligner.evaluation import methods as folder
from inferaligner.evaluation.methods.method import Bench, Method

DEFAULT = ("none", "inferaligner", "own-vectors", "self-reminder")
"""What is compared when nothing is asked for: four methods."""

ALL = (
    "none",
    "inferaligner",
    "paper",
    "always",
    "own-vectors",
    "canned",
    "self-reminder",
    "goal-priority",
    "cast",
    "aligned",
)
"""What `all` stands for: everything that needs no other file."""


@functools.cache
def declared() -> dict[str, ModuleType]:
    """Every method's module by its name."""
    modules = [import_module(f"{folder.__name__}.{m.name}") for m in pkgutil.iter_modules(folder.__path__)]
    return {module.NAME: module for module in modules if hasattr(module, "NAME") and hasattr(module, "make")}


def check(specs: Sequence[str]) -> list[str]:
    """The specs with `all` spelt out and `none` first, without loading anything.

    Raises:
        InputError: nothing of that name, or one method twice.
    """
    spelt = [name for spec in specs for name in (ALL if spec == "all" else (spec,))]
    for spec in spelt:
        name, _, option = spec.partition("=")
        if name not in declared():
            raise InputError(
                f"There is no method {name!r}. Expected some of {', '.join(sorted(declared()))}, or all."
            )
        if option and name in ("prompt", "safety-sft", "paper") and not Path(option).exists():
            raise InputError(f"{spec}: {option} does not exist.")
    if len(set(spelt)) < len(spelt):
        raise InputError(f"A method is named twice among {', '.join(spelt)}; name it once.")
    return ["none", *(spec for spec in spelt if spec != "none")]


def make_methods(specs: Sequence[str], bench: Bench) -> list[Method]:
    """The methods, the bare model first: the others build on its answers.

    Raises:
        InputError: as `check`, or something that a method needs is missing.
    """
    made = []
    for spec in check(specs):
        name, _, option = spec.partition("=")
        made.append(declared()[name].make(bench, option))
    names = [method.name for method in made]
    if len(set(names)) < len(names):
        raise InputError(f"Two methods have one name among {', '.join(names)}; rename a file.")
    return made
