"""What keeps a state per row of a batch on a model: a list on the model, which goes with the last of them.

A decoding loop in which rows leave the batch moves these states along with the rows (`shrinking_batch`). A
guard is such a keeper.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

_ATTRIBUTE = "_inferaligner_guards"


class RowStates(Protocol):
    """The states of some rows, one entry per row, in order."""

    def select(self, rows: Sequence[int]) -> Any:
        """A copy of the states of some rows (indices), in the order given."""

    @classmethod
    def join(cls, parts: Sequence[Any]) -> Any:
        """The states of all rows of the parts, in order."""


class RowKeeper(Protocol):
    """Follows the rows of a batch through its decoding steps."""

    def carried(self) -> Any:
        """The states (`RowStates`) of the rows that are being decoded."""

    def carry_on(self, rows: Any, cache: Any) -> None:
        """Goes on with other rows: calls with one token a row and this KV cache decode them."""


def keepers_on(model: Any) -> list[Any]:
    """The keepers on a model (a copy of the list), in the order in which they came."""
    return list(model.__dict__.get(_ATTRIBUTE, []))


def add_keeper(model: Any, keeper: RowKeeper) -> None:
    """Adds a keeper to a model."""
    model.__dict__.setdefault(_ATTRIBUTE, []).append(keeper)


def remove_keeper(model: Any, keeper: RowKeeper) -> None:
    """Removes a keeper; nothing happens for one that was never added."""
    others = [other for other in keepers_on(model) if other is not keeper]
    model.__dict__.pop(_ATTRIBUTE, None)
    if others:
        model.__dict__[_ATTRIBUTE] = others
