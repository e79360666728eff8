"""Stages that are shown by another listener, and timed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inferaligner.fit.progress import Stages


class Stopwatch:
    """A `Stages` that passes everything on and keeps the seconds of each stage, in order."""

    def __init__(self, listener: Stages) -> None:
        self.seconds: dict[str, float] = {}
        self._listener = listener

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """As the listener's, timed."""
        with self.measure(name), self._listener.stage(name, total) as advance:
            yield advance

    def note(self, text: str) -> None:
        """As the listener's."""
        self._listener.note(text)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Times what is not shown, or is shown by someone else."""
        begun = time.monotonic()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - begun
