"""Places as users write them."""

from __future__ import annotations

import os
from pathlib import Path


def expanded(place: str | os.PathLike[str]) -> Path:
    """The path with ~ spelt out; with the home of somebody who is not here, as it was written.

    Such a path does not exist, and whoever looks for it says so, as of any other.
    """
    path = Path(place)
    try:
        return path.expanduser()
    except (RuntimeError, ValueError):  # no such user; a name that cannot be one
        return path
