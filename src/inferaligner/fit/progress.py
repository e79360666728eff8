"""How a long fit tells where it is, without knowing who listens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

Advance = Callable[[int], None]


class Stages(Protocol):
    """A listener: a progress display, a log, or nothing."""

    def stage(self, name: str, total: int | None = None) -> AbstractContextManager[Advance]:
        """Opens a named stage of `total` steps; the context yields the function to advance it by."""

    def note(self, text: str) -> None:
        """Something worth telling that is not progress."""


class NullProgress:
    """Listens to nothing."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Advance]:
        yield lambda steps: None

    def note(self, text: str) -> None:
        return None
