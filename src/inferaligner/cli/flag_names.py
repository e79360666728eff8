"""Argument names of the library, as flags of the command line.

Messages and descriptions of the library name arguments in backticks: `max_false_open`, `carry="answers"`.
On the command line the user knows flags: --max-false-open, --carry answers. `in_flags` puts the flag in
place of the argument. While a command runs, everything that `terminal.py` prints on stderr passes through it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_ARGUMENT = re.compile(r"`([a-z_]+)(?:=(?:\"([^\"`]*)\"|'([^'`]*)'|([^`]*)))?`")
_flags: ContextVar[Mapping[str, str] | None] = ContextVar("flags", default=None)


def flags_of(commands: Mapping[str, Any]) -> dict[str, str]:
    """The flag of each argument name, of all commands together: a message may name a flag of another command.

    Args:
        commands: click commands by name.
    """
    return {
        parameter.name: next(flag for flag in parameter.opts if flag.startswith("--"))
        for command in commands.values()
        for parameter in command.params
        if any(flag.startswith("--") for flag in parameter.opts)
    }


@contextmanager
def printing_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Inside the `with` block, messages name these flags instead of arguments."""
    token = _flags.set(flags)
    try:
        yield
    finally:
        _flags.reset(token)


def in_flags(text: str, flags: Mapping[str, str] | None = None) -> str:
    """The text with a flag in place of each argument in backticks; other words in backticks stay.

    Args:
        flags: the flag of each argument; None takes those of the command that runs.
    """
    known = (_flags.get() or {}) if flags is None else flags

    def translated(match: re.Match[str]) -> str:
        name, *values = match.groups()
        if name not in known:
            return match.group()
        value = next((value for value in values if value is not None), "")
        return f"{known[name]} {value}".rstrip() if value not in ("True", "False") else known[name]

    return _ARGUMENT.sub(translated, text)
