"""Puts finished files and folders in place in one step."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def replace_file(file: Path, content: bytes) -> None:
    """Writes a file, readable by all; it is there whole, or as it was before. Raises `OSError`."""
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
    """Puts a finished folder in place; a reader sees the old artifact or the new one, never a mixture."""
    if not place.exists():
        fresh.rename(place)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}-old-", dir=place.parent))
    try:
        place.rename(old / place.name)
        fresh.rename(place)
    except BaseException:  # an interruption too: the old artifact goes back before anything is thrown away
        if not place.exists() and (old / place.name).exists():
            (old / place.name).rename(place)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
