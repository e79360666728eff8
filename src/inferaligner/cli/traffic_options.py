"""`--benign`, `--scores` and the shares that go with them: reading and checking them before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from inferaligner.cli.terminal import warn
from inferaligner.errors import InputError
from inferaligner.prompts.images import Prompt
from inferaligner.prompts.prompt_files import read_prompts


def by_name(values: Sequence[str], option: str) -> dict[str, tuple[str, bool]]:
    """What `SPEC` or `NAME=SPEC` name: the spec, and whether the name was given rather than the file's own.

    Raises:
        InputError: a name or a spec is missing, or a name is there twice.
    """
    found: dict[str, tuple[str, bool]] = {}
    for value in values:
        name, equals, spec = value.partition("=")
        given = bool(equals) and "/" not in name and not Path(value).exists()
        if not given:
            name, spec = Path(value).stem if "://" not in value else value, value
        name = name.strip()
        if not name:
            raise InputError(f"{option} {value!r} has no name before the '='; expected NAME=SPEC or SPEC.")
        if not spec:
            raise InputError(f"{option} {value!r} names no file after the '='; expected NAME=SPEC or SPEC.")
        if name in found:
            raise InputError(f"{option} names {name!r} twice; tell the two apart with {option} NAME=SPEC.")
        found[name] = (spec, given)
    return found


def read_benign(values: Sequence[str]) -> dict[str, list[Prompt]]:
    """Prompts by name from `SPEC` or `NAME=SPEC`; without a name, the file's own is taken."""
    return {name: read_prompts(spec) for name, (spec, _) in by_name(values, "--benign").items()}


def check_shares(max_false_open: float | None, confidence: float | None) -> None:
    """Raises `InputError` for what is no share of one; None is fine."""
    for option, value, example in (
        ("--max-false-open", max_false_open, 0.01),
        ("--confidence", confidence, 0.95),
    ):
        if value is not None and not 0 < value < 1:
            raise InputError(f"{option} is {value}; expected a share between 0 and 1, such as {example}.")


def warn_of_too_few(
    traffic: Mapping[str, Sequence[object]], max_false_open: float, confidence: float
) -> None:
    """Says plainly which traffic is too small for the promise, and what to do."""
    from inferaligner.fit.operating_point.choice import too_few

    for name, rows in traffic.items():
        told = too_few(name, len(rows), max_false_open, confidence) if len(rows) else None
        if told is not None:
            warn(told)
