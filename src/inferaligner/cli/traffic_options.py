"""Reads and checks `--benign` and `--scores` before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from inferaligner.cli.terminal import warn
from inferaligner.errors import InputError
from inferaligner.prompts.images import Prompt
from inferaligner.prompts.prompt_files import read_prompts


def by_name(values: Sequence[str], option: str) -> dict[str, tuple[str, bool]]:
    """Reads `SPEC` or `NAME=SPEC`: specs by name, and whether the user gave the name (else it is the file's).

    Raises:
        InputError: a name or a spec is missing, or a name is there twice.
    """
    specs: dict[str, tuple[str, bool]] = {}
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
        if name in specs:
            raise InputError(
                f"{option} names {name!r} twice; give each a name of its own with {option} NAME=SPEC."
            )
        specs[name] = (spec, given)
    return specs


def read_benign(values: Sequence[str]) -> dict[str, list[Prompt]]:
    """Prompts by name from `SPEC` or `NAME=SPEC`; without a name, the file's own is taken."""
    return {name: read_prompts(spec) for name, (spec, _) in by_name(values, "--benign").items()}


def warn_of_too_few(
    traffic: Mapping[str, Sequence[object]], max_false_open: float, confidence: float
) -> None:
    """Warns of traffic that has too few prompts for the bound."""
    from inferaligner.fit.operating_point.threshold import too_few

    for name, rows in traffic.items():
        warning = too_few(name, len(rows), max_false_open, confidence) if len(rows) else None
        if warning is not None:
            warn(warning)
