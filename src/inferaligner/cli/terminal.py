"""Where the command line writes: results to stdout, everything else to stderr.

The consoles are made when they are needed, because colours depend on where stdout and stderr go then. On a
terminal that is not UTF-8, rich draws with ASCII, and `tolerate_any_encoding` replaces what is left.
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
"""The environment variable that asks for tracebacks."""


_REPLACE = "inferaligner-replace"
_REPLACEMENTS = {
    "█": "#", "•": "*", "▲": "^", "▼": "v", "≈": "~", "→": "->", "›": ">", "‖": "|", "×": "x",
    "–": "-", "—": "-", "−": "-", "…": "...", "≤": "<=", "≥": ">=", "±": "+-",
    "‘": "'", "’": "'", "“": '"', "”": '"', "µ": "u", "λ": "lambda", "α": "alpha", "ε": "epsilon",
}  # fmt: skip
"""What the views and messages print, in ASCII; any other character becomes a question mark."""


def tolerate_any_encoding() -> None:
    """Keeps stdout and stderr from raising for a character that their encoding lacks, and stdin for a byte.

    Files are not concerned: they are UTF-8 everywhere. Bytes of stdin that its encoding lacks become lone
    surrogates, which `check_text` refuses.
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
    """Raises `InputError` for text from the command line or stdin that could not be decoded."""
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(
            f"{name} holds bytes that are not text in this terminal's encoding "
            f"({sys.getfilesystemencoding()}). Set PYTHONUTF8=1 or LC_ALL=C.UTF-8, and "
            "try again."
        )


def results() -> Console:
    """For what the user asked for."""
    return Console()


def messages() -> Console:
    """For progress, notes, warnings and errors."""
    return Console(stderr=True)


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    # Escaped, because stdout may be in an encoding that lacks a character of the text.
    print(dump(value, indent=2, ascii_only=not _speaks_unicode()), flush=True)


def print_json_line(value: Any) -> None:
    """One JSON object on one line of stdout."""
    print(dump(value, ascii_only=not _speaks_unicode()), flush=True)


def note(text: str, style: str = "dim") -> None:
    """Something worth telling, on one line."""
    messages().print(Text(in_flags(text), style=style), soft_wrap=True)


def warn(text: str) -> None:
    """Something that the user should know before going on."""
    messages().print(Text.assemble(("Warning: ", "bold yellow"), in_flags(text)), soft_wrap=True)


def fail(text: str) -> None:
    """An error, on one line; with the traceback of what is being handled if that was asked for."""
    if debugging():
        traceback.print_exc()
    messages().print(Text.assemble(("Error: ", "bold red"), " ".join(in_flags(text).split())), soft_wrap=True)


def quieten() -> None:
    """Silences what packages log while they are imported: nothing that a user could act on."""
    if not debugging():
        for name in ("torchao", "torch.utils._pytree"):
            logging.getLogger(name).setLevel(logging.ERROR)


def debugging() -> bool:
    """Whether tracebacks are wanted."""
    return os.environ.get(DEBUG, "") not in ("", "0")


def _speaks_unicode() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") in ("utf8", "utf16", "utf32")
