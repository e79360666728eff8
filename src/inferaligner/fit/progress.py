"""Progress of a long run, reported to a listener: a display, a log, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]
"""Called with the number of steps that were finished."""


class Progress(Protocol):
    """A listener to the stages of a run."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Opens a stage of `total` steps (None: unknown). The context yields a function that counts them."""

    def note(self, text: str) -> None:
        """Reports a result or a warning in one sentence."""


class NullProgress:
    """Ignores everything."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        yield lambda steps: None

    def note(self, text: str) -> None:
        return None
