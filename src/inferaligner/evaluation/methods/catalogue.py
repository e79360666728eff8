"""All methods, and those that a user names. The contract is in `method.py`."""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import InputError
from inferaligner.evaluation import methods as folder
from inferaligner.evaluation.methods.method import Method, MethodContext, Needs

DEFAULT = ("none", "inferaligner", "own-vectors", "self-reminder")
"""The methods of a run without `--method`."""

DEFAULT_OF_A_GATE = ("none", "canned", "self-reminder")
"""The same for an aligner that is a gate alone."""

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
"""The methods of `all`, in the order of the tables: every method that needs no option."""


@functools.cache
def declared() -> dict[str, ModuleType]:
    """The module of every method by the method's name."""
    modules = [import_module(f"{folder.__name__}.{m.name}") for m in pkgutil.iter_modules(folder.__path__)]
    return {module.NAME: module for module in modules if hasattr(module, "NAME") and hasattr(module, "make")}


def check(specs: Sequence[str]) -> list[str]:
    """The specs with `all` replaced by its methods and `none` first; no model is loaded.

    Raises:
        InputError: there is no such method, an option is missing, or one method is named twice.
    """
    expanded = [name for spec in specs for name in (ALL if spec == "all" else (spec,))]
    for spec in expanded:
        name, _, option = spec.partition("=")
        module = declared().get(name)
        if module is None:
            raise InputError(
                f"There is no method {name!r}. Expected some of {', '.join(sorted(declared()))}, or all."
            )
        if option and getattr(module, "OPTION_IS_PATH", False) and not Path(option).exists():
            raise InputError(f"{spec}: {option} does not exist.")
        if not option and hasattr(module, "OPTION"):
            raise InputError(f"The method {name} needs {module.OPTION}.")
    if len(set(expanded)) < len(expanded):
        raise InputError(f"A method is named twice among {', '.join(expanded)}; name it once.")
    return ["none", *(spec for spec in expanded if spec != "none")]


def choose(asked: Sequence[str], artifact: AlignerArtifact | None) -> tuple[list[str], dict[str, str]]:
    """The methods to run, and the methods of `all` that this aligner does not allow, with the reasons.

    Without `asked`, the default methods that the aligner allows are run. No model is loaded.

    Raises:
        InputError: as `check`, or the aligner does not allow a method that was named.
    """
    default = DEFAULT_OF_A_GATE if artifact is not None and artifact.gate_only else DEFAULT
    by_name = [spec for spec in asked if spec != "all"]
    left_out: dict[str, str] = {}
    for spec in check(by_name):
        why = lacking(spec, artifact)
        if why is not None:
            raise InputError(f"The method {spec} {why}")
    # A method that is named beside `all`, such as aligned=MODEL, keeps its place in the order of `all`.
    named = {spec.partition("=")[0]: spec for spec in by_name}
    chosen: list[str] = []
    for name in ALL if "all" in asked else () if asked else default:
        why = lacking(named.get(name, name), artifact)
        if why is None:
            chosen.append(named.get(name, name))
        elif asked:
            left_out[name] = why
    return check([*chosen, *(spec for spec in by_name if spec not in chosen)]), left_out


def lacking(spec: str, artifact: AlignerArtifact | None) -> str | None:
    """What the method needs and the run has not, as a sentence after its name; None if it can be made."""
    name, _, option = spec.partition("=")
    needs: Needs = getattr(declared()[name], "NEEDS", "nothing")
    if option or needs == "nothing":
        return None
    if artifact is None:
        if needs == "guide":
            return "needs a model: aligned=MODEL, or an aligner that was fitted with one."
        return "needs an aligner: give one with --aligner DIR."
    if needs != "gate" and artifact.gate_only:
        return (
            "needs an aligned model's vectors, and this aligner is a gate alone. With a gate, `canned` "
            "answers open prompts with a text; or fit with --aligned MODEL."
            if needs == "vectors"
            else "needs a model, and this aligner was fitted without one: aligned=MODEL."
        )
    return None


def make_methods(specs: Sequence[str], context: MethodContext) -> list[Method]:
    """Makes the methods, the bare model first, because the others take over its answers.

    Raises:
        InputError: as `check`, or a method needs an aligner or a model that is missing.
    """
    made = []
    for spec in check(specs):
        name, _, option = spec.partition("=")
        made.append(declared()[name].make(context, option))
    names = [method.name for method in made]
    if len(set(names)) < len(names):
        raise InputError(f"Two methods have one name among {', '.join(names)}; rename a file.")
    return made
