"""Times the stages that another listener shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inferaligner.fit.progress import Stages


class Stopwatch:
    """A `Stages` that calls another listener and keeps the seconds of each stage, in order."""

    def __init__(self, listener: Stages) -> None:
        self.seconds: dict[str, float] = {}
        self._listener = listener

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Opens a stage of the listener and times it."""
        with self.measure(name), self._listener.stage(name, total) as advance:
            yield advance

    def note(self, text: str) -> None:
        """Passes a note to the listener."""
        self._listener.note(text)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Times a step that the listener does not show."""
        begun = time.monotonic()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - begun
