"""Atomic writing: a reader sees the old file or folder, or the new one, never a part of it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def replace_file(file: Path, content: bytes) -> None:
    """Writes a file that everybody may read, in one step.

    Args:
        file: to create or replace.
        content: of the file.

    Raises:
        OSError: the file cannot be written; a former one is unchanged.
    """
    handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    try:
        with os.fdopen(handle, "wb") as fresh:
            fresh.write(content)
            fresh.flush()
            os.fsync(fresh.fileno())
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def swap_folder(fresh: Path, place: Path) -> None:
    """Moves a finished folder to its place; a folder that is there is replaced.

    Args:
        fresh: the finished folder, on the same file system.
        place: path that it gets.

    Raises:
        OSError: the folder cannot be moved; a former one is back in its place.
    """
    if not place.exists():
        fresh.rename(place)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent))
    try:
        place.rename(old / place.name)
        fresh.rename(place)
    except BaseException:  # interruptions too: the old folder goes back before anything is deleted
        if not place.exists() and (old / place.name).exists():
            (old / place.name).rename(place)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
