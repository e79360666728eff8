"""A stage's state in a file: written every two minutes and at the end, lest an interruption costs it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_EVERY = 120.0  # seconds


class Checkpoints:
    """Writes the result of `state` to `place` in one step, so that the file is always complete."""

    def __init__(self, place: Path, state: Callable[[], dict[str, Any]]) -> None:
        self._place = place
        self._state = state
        self._kept = time.monotonic()

    def now_and_then(self) -> None:
        """Writes if it is time to."""
        if time.monotonic() - self._kept > _EVERY:
            self.now()

    def now(self) -> None:
        """Writes."""
        unfinished = self._place.with_suffix(".new")
        torch.save(self._state(), unfinished)
        unfinished.replace(self._place)
        self._kept = time.monotonic()
