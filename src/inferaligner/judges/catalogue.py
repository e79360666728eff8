"""All judges, and the one that a user names. The contract is in `judges/__init__.py`."""

from __future__ import annotations

import functools
import pkgutil
from importlib import import_module
from types import ModuleType

from inferaligner import judges as folder
from inferaligner.errors import InputError
from inferaligner.judges import Judge, JudgeOptions


@functools.cache
def declared() -> dict[str, ModuleType]:
    """The module of every judge by the judge's name."""
    modules = [import_module(f"{folder.__name__}.{m.name}") for m in pkgutil.iter_modules(folder.__path__)]
    return {module.NAME: module for module in modules if hasattr(module, "NAME") and hasattr(module, "make")}


def make_judge(spec: str, options: JudgeOptions) -> Judge:
    """Makes the judge of `NAME` or `NAME=OPTION`.

    Raises:
        InputError: there is no such judge, or its option is missing or wrong.
        ModelLoadError: the judge's model cannot be loaded.
        MissingExtraError: the judge needs a package that is not installed.
    """
    name, _, option = spec.partition("=")
    if name not in declared():
        raise InputError(f"There is no judge {name!r}; expected one of {', '.join(sorted(declared()))}.")
    if not option and hasattr(declared()[name], "OPTION"):
        raise InputError(f"The judge {name} needs {declared()[name].OPTION}.")
    judge: Judge = declared()[name].make(option, options)
    return judge
