"""All suites there are, and the one that a user names.

Every module of this folder that has a `SUITE` declares one; a new file is a new suite.
"""

from __future__ import annotations

import functools
import pkgutil
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from inferaligner.errors import InputError
from inferaligner.evaluation import suites as folder
from inferaligner.evaluation.suites.published import Published
from inferaligner.evaluation.suites.sampling import Subset, draw
from inferaligner.evaluation.suites.suite import Item, Kind, Suite
from inferaligner.evaluation.suites.user_files import user_suite

DEFAULT = ("contrast-harmful", "contrast-jailbreak", "contrast-over-refusal", "reading", "contrast-benign")
"""What is run when nothing is asked for: a suite of every kind, all of them shipped."""

LIMITS: dict[Kind, int] = {
    "harmful": 300,
    "jailbreak": 200,
    "over-refusal": 200,
    "utility": 300,
    "benign": 60,
}
QUICK_LIMITS: dict[Kind, int] = {
    "harmful": 40,
    "jailbreak": 20,
    "over-refusal": 40,
    "utility": 60,
    "benign": 16,
}
"""Prompts per suite of a kind, unless told otherwise."""


@functools.cache
def declared() -> dict[str, Suite]:
    """Every declared suite by its name."""
    found: dict[str, Suite] = {}
    for module in pkgutil.iter_modules(folder.__path__):
        suite = getattr(import_module(f"{folder.__name__}.{module.name}"), "SUITE", None)
        if suite is not None:
            found[suite.name] = suite
    return found


def named(spec: str) -> Suite:
    """The suite that the user means: a declared name, or `KIND=SPEC` for a file of their own.

    Raises:
        InputError: nothing of that name, or a file that cannot be used.
    """
    if spec in declared():
        return declared()[spec]
    kind, equals, place = spec.partition("=")
    if equals:
        return user_suite(kind, place)
    raise InputError(
        f"There is no suite {spec!r}. Expected one of {', '.join(sorted(declared()))}; or KIND=FILE for "
        "prompts of your own, such as harmful=prompts.txt."
    )


def load(
    specs: Sequence[str],
    *,
    data: Path | None,
    hub: bool = False,
    limit: int | None = None,
    quick: bool = False,
    seed: int = 0,
) -> list[Subset]:
    """The prompts of each suite named, drawn with the seed; `limit` overrides the limit of every kind.

    `NAME@N` takes N prompts of a declared suite, whatever the limits say.

    Raises:
        InputError: a suite is missing, unusable or named twice.
    """
    limits = QUICK_LIMITS if quick else LIMITS
    found: dict[str, Subset] = {}
    for spec in specs:
        name, count = _counted(spec)
        suite = named(name)
        if suite.name in found:
            raise InputError(f"The suite {suite.name} is named twice; name it once, or rename one file.")
        items = _items(suite, data, hub)
        most = limits[suite.kind] if limit is None else limit
        found[suite.name] = draw(suite, items, most if count is None else count, seed)
    return list(found.values())


def _counted(spec: str) -> tuple[str, int | None]:
    """The spec without its @N, and N; files of users may have an @ in their names."""
    name, at, count = spec.rpartition("@")
    if not at or name not in declared():
        return spec, None
    if not count.isdigit() or int(count) == 0:
        raise InputError(f"The suite {spec!r}: expected a number of prompts after the @, such as {name}@100.")
    return name, int(count)


def _items(suite: Suite, data: Path | None, hub: bool) -> list[Item]:
    if not isinstance(suite.source, Published) or not hub:
        return suite.source.items(data)
    try:
        return suite.source.items(data)
    except InputError:
        return suite.source.from_hub()
