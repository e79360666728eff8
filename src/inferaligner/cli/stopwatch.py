"""The time of each stage of a command."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from inferaligner.fit.progress import Stages


class Stopwatch:
    """A `Stages` that measures the seconds of each stage and passes every call on to another one."""

    def __init__(self, listener: Stages) -> None:
        self.seconds: dict[str, float] = {}
        self._listener = listener

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """The listener's stage, timed."""
        with self.measure(name), self._listener.stage(name, total) as advance:
            yield advance

    def note(self, text: str) -> None:
        """Passes a note on."""
        self._listener.note(text)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Times a part of the command that is not a stage of the listener."""
        begun = time.monotonic()
        self.seconds.setdefault(name, 0.0)
        try:
            yield
        finally:
            self.seconds[name] += time.monotonic() - begun
