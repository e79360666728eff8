"""Output of the command line: results on stdout, all other messages on stderr.

Consoles are made at each use, because colours depend on where stdout and stderr go at that time. On a
terminal that is not UTF-8, rich draws with ASCII, and `tolerate_any_encoding` replaces the other characters.
"""

from __future__ import annotations

import codecs
import logging
import os
import sys
import traceback
from typing import Any

from rich.console import Console
from rich.text import Text

from inferaligner.cli.flag_names import in_flags
from inferaligner.errors import InputError
from inferaligner.storage.json_io import dump

DEBUG = "INFERALIGNER_DEBUG"
"""The environment variable that switches tracebacks on."""


_REPLACE = "inferaligner-replace"
_REPLACEMENTS = {
    "█": "#", "•": "*", "▲": "^", "▼": "v", "≈": "~", "→": "->", "›": ">", "‖": "|", "×": "x",
    "–": "-", "—": "-", "−": "-", "…": "...", "≤": "<=", "≥": ">=", "±": "+-",
    "‘": "'", "’": "'", "“": '"', "”": '"', "µ": "u", "λ": "lambda", "α": "alpha", "ε": "epsilon",
}  # fmt: skip
"""ASCII for the characters of views and messages; any other character becomes a question mark."""


def tolerate_any_encoding() -> None:
    """Replaces characters that the encoding of stdout or stderr lacks, instead of raising an error.

    Undecodable bytes of stdin become lone surrogates, which `check_text` refuses. Files are always UTF-8.
    """
    codecs.register_error(_REPLACE, _replaced)
    for stream, errors in ((sys.stdout, _REPLACE), (sys.stderr, _REPLACE), (sys.stdin, "surrogateescape")):
        if hasattr(stream, "reconfigure"):  # None without a console, and tests put other objects there
            stream.reconfigure(errors=errors)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lost = error.object[error.start : error.end]
    return "".join(_REPLACEMENTS.get(character, "?") for character in lost), error.end


def check_text(text: str, name: str) -> None:
    """Refuses text from the command line or stdin that could not be decoded.

    Raises:
        InputError: The text has undecodable bytes; the message calls it `name`.
    """
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(
            f"{name} has bytes that are not text in this terminal's encoding "
            f"({sys.getfilesystemencoding()}). Set PYTHONUTF8=1 or LC_ALL=C.UTF-8, and "
            "try again."
        )


def results() -> Console:
    """The console for results."""
    return Console()


def messages() -> Console:
    """The console for progress, notes, warnings and errors."""
    return Console(stderr=True)


def print_json(value: Any) -> None:
    """Prints one JSON document on stdout, with escapes if its encoding may lack a character."""
    print(dump(value, indent=2, ascii_only=not _speaks_unicode()), flush=True)


def print_json_line(value: Any) -> None:
    """Prints one JSON object on one line of stdout."""
    print(dump(value, ascii_only=not _speaks_unicode()), flush=True)


def note(text: str, style: str = "dim") -> None:
    """Prints a note on one line."""
    messages().print(Text(in_flags(text), style=style), soft_wrap=True)


def warn(text: str) -> None:
    """Prints a warning."""
    messages().print(Text.assemble(("Warning: ", "bold yellow"), in_flags(text)), soft_wrap=True)


def fail(text: str) -> None:
    """Prints an error on one line; with `DEBUG`, the traceback of the current exception before it."""
    if debugging():
        traceback.print_exc()
    messages().print(Text.assemble(("Error: ", "bold red"), " ".join(in_flags(text).split())), soft_wrap=True)


def quieten() -> None:
    """Silences log messages of packages at import time, which a user cannot act on."""
    if not debugging():
        for name in ("torchao", "torch.utils._pytree"):
            logging.getLogger(name).setLevel(logging.ERROR)


def debugging() -> bool:
    """Whether tracebacks are switched on."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")
