"""All methods there are, and the one that a user names.

Every module of this folder that has a `NAME`, `NEEDS` and a `make(bench, option)` is one; a new file is a new
method.
"""

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
from inferaligner.evaluation.methods.method import Method, MethodContext

DEFAULT = ("none", "inferaligner", "own-vectors", "self-reminder")
"""What is compared when nothing is asked for: four methods."""

DEFAULT_OF_A_GATE = ("none", "canned", "self-reminder")
"""The same where an aligner is a gate alone."""

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

OPTIONS = {
    "prompt": "a template: prompt=FILE, with {prompt} in it",
    "safety-sft": "a model: safety-sft=FOLDER",
    "domain-chat": "a model: domain-chat=MODEL",
}
"""What must be named with a method."""


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
        if not option and name in OPTIONS:
            raise InputError(f"The method {name} needs {OPTIONS[name]}.")
    if len(set(spelt)) < len(spelt):
        raise InputError(f"A method is named twice among {', '.join(spelt)}; name it once.")
    return ["none", *(spec for spec in spelt if spec != "none")]


def choose(asked: Sequence[str], artifact: AlignerArtifact | None) -> tuple[list[str], dict[str, str]]:
    """The methods to run, and those of `all` that cannot be made with this aligner, with the reason.

    Nothing asked for means the default methods, as far as the aligner goes; no model is loaded.

    Raises:
        InputError: as `check`, or a method was named that cannot be made with this aligner.
    """
    default = DEFAULT_OF_A_GATE if artifact is not None and artifact.gate_only else DEFAULT
    by_name = [spec for spec in asked if spec != "all"]
    left_out: dict[str, str] = {}
    for spec in check(by_name):
        why = lacking(spec, artifact)
        if why is not None:
            raise InputError(f"The method {spec} {why}")
    # What is named beside `all` takes its place in the order: aligned=MODEL, say.
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
    """What a method would need that is not there, to be read after its name; None if it can be made."""
    name, _, option = spec.partition("=")
    needs = declared()[name].NEEDS
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


def make_methods(specs: Sequence[str], bench: MethodContext) -> list[Method]:
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
