"""Output files of the command line, written whole."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump


def check_output_file(file: Path, source: str | None = None) -> None:
    """Checks that a file can be written, before work whose result would be lost.

    Args:
        file: The file to write.
        source: The spec of the prompt file that is read, which must not be overwritten.

    Raises:
        InputError: The file cannot be written, or is the prompt file.
    """
    if os.path.isdir(file):
        raise InputError(f"{file} is a folder; expected the name of a file to write.")
    if not os.path.isdir(file.parent):
        raise InputError(f"{file} cannot be written: there is no folder {file.parent}. Make it first.")
    if source is not None and os.path.exists(file):
        for name in (source, source.rpartition(":")[0]):
            if name and os.path.exists(name) and os.path.samefile(name, file):
                raise InputError(f"{file} is the prompt file itself; give another file with -o.")
    try:
        # Only trying to write gives the right answer for read-only mounts, quotas and root.
        if file.exists():
            with file.open("ab"):
                pass
        else:
            with tempfile.TemporaryFile(dir=file.parent):
                pass
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}); give another one with -o.") from None


def make_folder(folder: Path) -> None:
    """Makes a folder for results, unless it exists.

    Raises:
        InputError: The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be made ({error.strerror}); give another folder with -o."
        ) from None


def write_lines(file: Path, rows: Iterable[Any]) -> None:
    """Writes JSON lines; after an error the file is as it was before."""
    write_whole(file, "".join(dump(row) + "\n" for row in rows).encode("utf-8", "backslashreplace"))


def write_whole(file: Path, content: bytes) -> None:
    """Writes a file in one step.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        if file.exists() and not file.is_file():  # /dev/stdout, a pipe
            file.write_bytes(content)
            return
        replace_file(file, content)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}); give another one with -o.") from None
