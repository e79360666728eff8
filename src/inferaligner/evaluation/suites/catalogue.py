"""All suites, and the one that a user names. The contract is in `suite.py`."""

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
"""The suites of a run without `--suite`: one of every kind, all shipped."""

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
"""Prompts per suite by its kind, without `--limit`."""

QUICK_TOKENS: dict[Kind, int] = {"benign": 64}
"""Shorter limits of `--quick`. Benign suites ask whether an answer is the bare model's: steering begins with
its first token, and the promise of a monitor covers as many tokens as this."""


@functools.cache
def declared() -> dict[str, Suite]:
    """Every declared suite by its name."""
    suites: dict[str, Suite] = {}
    for module in pkgutil.iter_modules(folder.__path__):
        for value in vars(import_module(f"{folder.__name__}.{module.name}")).values():
            if isinstance(value, Suite) and suites.setdefault(value.name, value) is not value:
                raise ValueError(
                    f"Two suites have the name {value.name}; rename the one in {module.name}.py."
                )
    return suites


def named(spec: str) -> Suite:
    """The suite of a declared name, or of `KIND=SPEC`, which names a file of the user.

    Raises:
        InputError: there is no such suite, or the file cannot be used.
    """
    if spec in declared():
        return declared()[spec]
    kind, equals, file = spec.partition("=")
    if equals:
        return user_suite(kind, file)
    raise InputError(
        f"There is no suite {spec!r}. Expected one of {', '.join(sorted(declared()))}; or KIND=FILE for "
        "your own prompts, such as harmful=prompts.txt."
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
    """Draws the prompts of suites.

    Args:
        specs: names of suites, `NAME@N` for N prompts of a declared suite, or `KIND=SPEC` for a user's file.
        data: the folder of public sets.
        hub: read sets that are not in the folder from the hub.
        limit: the most prompts per suite; None for the limit of its kind.
        quick: use the smaller limits.
        seed: settles which prompts are drawn.

    Raises:
        InputError: a suite is missing, unusable or named twice.
    """
    limits = QUICK_LIMITS if quick else LIMITS
    subsets: dict[str, Subset] = {}
    for spec in specs:
        name, count = _counted(spec)
        suite = named(name)
        if suite.name in subsets:
            raise InputError(f"The suite {suite.name} is named twice; name it once, or rename one file.")
        items = _items(suite, data, hub)
        most = limits[suite.kind] if limit is None else limit
        subsets[suite.name] = draw(suite, items, most if count is None else count, seed)
    return list(subsets.values())


def _counted(spec: str) -> tuple[str, int | None]:
    """The spec without its @N, and N; only for declared suites, because a file's name may have an @ too."""
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
