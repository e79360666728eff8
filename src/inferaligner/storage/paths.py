"""Paths as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(place: str | os.PathLike[str]) -> Path:
    """The path with ~ replaced by the home folder.

    With the name of an unknown user the path stays as it is; opening it then gives the usual error of a
    missing file.
    """
    path = Path(place)
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):  # no such user, or no valid user name
        return path
