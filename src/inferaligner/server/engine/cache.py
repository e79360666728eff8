"""The KV cache of rows that join and leave while others are being decoded.

Every layer is one buffer `[row capacity, heads, column capacity, head width]`, and the rows in use are a
window of it. All rows end at the same column; the columns before a row's first token are masked. This is the
layout of left padding, which every model that `generate` can batch understands, sliding windows and position
biases included. A new token costs one write, where concatenation would copy the cache.

Masked columns hold zeros, never values of another request: attention gives them the weight 0, but 0 · NaN
would still be NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from inferaligner.errors import SteeringError

_SPARE_COLUMNS = 128


class _Window:
    """The part of the buffers that is in use, the same in all layers."""

    def __init__(self) -> None:
        self.rows = 0
        self.start = 0
        self.end = 0

    @property
    def width(self) -> int:
        return self.end - self.start


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """The buffers of one layer."""

    is_sliding = False

    def __init__(self, window: _Window, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True
        self.dtype, self.device = keys.dtype, keys.device
        self._window = window
        self.keys, self.values = keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Does nothing: the buffers are made before the first pass."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes the new token of every row and returns the whole window.

        Args:
            key_states: `[rows, heads, 1, head width]`.
            value_states: the same shape.

        Returns:
            Keys and values `[rows, heads, columns, head width]`.
        """
        window = self._window
        assert self.keys is not None and self.values is not None
        stop = window.end + key_states.shape[-2]
        self.keys[: window.rows, :, window.end : stop] = key_states
        self.values[: window.rows, :, window.end : stop] = value_states
        return (
            self.keys[: window.rows, :, window.start : stop],
            self.values[: window.rows, :, window.start : stop],
        )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of the columns that a mask covers."""
        return self._window.width + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use, masked ones included."""
        return self._window.width

    def get_max_length(self) -> int:
        """-1: there is no limit."""
        return -1


class RunningCache(Cache):
    """The cache of the running rows. Used by the engine's thread alone."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.window = _Window()
        self.lengths: list[int] = []  # tokens of each row

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.window.rows

    def mask(self, device: torch.device) -> Tensor:
        """The attention mask `[rows, columns + 1]` of the next step."""
        lengths = torch.tensor(self.lengths, device=device)[:, None] + 1
        width = self.window.width + 1
        return (torch.arange(width, device=device)[None] >= width - lengths).long()

    def reserve(self, columns: int = 1) -> None:
        """Makes room for `columns` new tokens of each row. Called before a pass."""
        layer: Any = self.layers[0]
        if self.window.end + columns > layer.keys.shape[2]:
            self._resize(layer.keys.shape[0], self.window.width + columns + _SPARE_COLUMNS)

    def advance(self, columns: int = 1) -> None:
        """Keeps the `columns` tokens that a pass has written. Not called after a pass that failed."""
        self.window.end += columns
        self.lengths = [length + columns for length in self.lengths]

    def admit(self, source: Cache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Adds rows of a prefill's cache.

        Args:
            source: cache of the prefill, with padding on the left.
            rows: indices of the rows to add.
            lengths: number of tokens of each of these rows; they are its last columns.

        Raises:
            SteeringError: the model keeps another kind of cache.
        """
        if rows:
            check_kind(source)
            layers: Sequence[Any] = source.layers
            self._take([(layer.keys, layer.values) for layer in layers], rows, lengths)

    def absorb(self, other: RunningCache) -> None:
        """Adds all rows of another cache, in order."""
        if other.rows:
            columns = slice(other.window.start, other.window.end)
            layers: Sequence[Any] = other.layers
            parts = [(layer.keys[:, :, columns], layer.values[:, :, columns]) for layer in layers]
            self._take(parts, range(other.rows), other.lengths)

    def _take(self, parts: Sequence[tuple[Any, Any]], rows: Sequence[int], lengths: Sequence[int]) -> None:
        if not self.layers:
            self._build(parts, len(rows), max(lengths))
        window = self.window
        first, total = window.rows, window.rows + len(rows)
        width = max(window.width if first else 0, *lengths)
        layer: Any = self.layers[0]
        capacity = layer.keys.shape[0]
        if total > capacity or width > window.end:
            capacity = max(total, 2 * capacity) if total > capacity else capacity
            self._resize(capacity, width + _SPARE_COLUMNS, shift=width - window.width)
        start = window.end - width
        for own, news in zip(self.layers, parts, strict=True):
            for name, new in zip(("keys", "values"), news, strict=True):
                target = getattr(own, name)
                if start < window.start:
                    target[:first, :, start : window.start] = 0
                target[first:total, :, start : window.end] = 0
                for offset, (row, length) in enumerate(zip(rows, lengths, strict=True)):
                    target[first + offset, :, window.end - length : window.end] = new[row, :, -length:]
        window.start, window.rows = start, total
        self.lengths += list(lengths)

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Drops all rows but these.

        Returns:
            The kept rows (former indices) in their new order: the last rows fill the gaps.
        """
        wanted = set(rows)
        order = list(range(self.rows))
        count = len(wanted)
        holes = [at for at in range(count) if at not in wanted]
        movers = [at for at in range(count, self.rows) if at in wanted]
        for hole, mover in zip(holes, movers, strict=True):
            order[hole] = mover
            self._move(mover, hole)
        order = order[:count]
        self.lengths = [self.lengths[at] for at in order]
        self.window.rows = count
        if not count:
            self.clear()
        else:
            self.window.start = self.window.end - max(self.lengths)
        return order

    def split(self, rows: Sequence[int]) -> RunningCache:
        """A new cache with copies of some rows."""
        part = RunningCache()
        picked = torch.tensor(list(rows))
        part.window.rows, part.window.end = len(rows), self.window.width
        part.lengths = [self.lengths[row] for row in rows]
        for layer in self.layers:
            own: Any = layer
            columns = slice(self.window.start, self.window.end)
            keys = own.keys[:, :, columns][picked.to(own.keys.device)]
            values = own.values[:, :, columns][picked.to(own.values.device)]
            part.layers.append(_Layer(part.window, keys, values))
        return part

    def clear(self) -> None:
        """Drops all rows and frees the memory."""
        self.layers.clear()
        self.lengths = []
        self.window.rows = self.window.start = self.window.end = 0

    def _move(self, source: int, target: int) -> None:
        columns = slice(self.window.start, self.window.end)
        for layer in self.layers:
            own: Any = layer
            own.keys[target, :, columns] = own.keys[source, :, columns]
            own.values[target, :, columns] = own.values[source, :, columns]

    def _build(self, parts: Sequence[tuple[Any, Any]], rows: int, width: int) -> None:
        self.window.rows, self.window.start, self.window.end = 0, width, width
        columns = width + _SPARE_COLUMNS
        for keys, values in parts:
            layer = _Layer(self.window, _zeros(keys, rows, columns), _zeros(values, rows, columns))
            self.layers.append(layer)

    def _resize(self, rows: int, columns: int, shift: int = 0) -> None:
        """Moves the window to new buffers, `shift` columns from their left edge."""
        window = self.window
        old = slice(window.start, window.end)
        new = slice(shift, shift + window.width)
        for layer in self.layers:
            own: Any = layer
            for name in ("keys", "values"):
                before = getattr(own, name)
                after = _zeros(before, rows, max(columns, new.stop + 1))
                after[: window.rows, :, new] = before[: window.rows, :, old]
                setattr(own, name, after)
        window.start, window.end = new.start, new.stop


def check_kind(cache: Cache) -> None:
    """Raises `SteeringError` unless rows of this cache can be separated and moved."""
    odd = {type(layer).__name__ for layer in cache.layers if type(layer) is not DynamicLayer}
    empty = [layer for layer in cache.layers if not getattr(layer, "is_initialized", False)]
    if odd or empty or not cache.layers:
        raise SteeringError(
            f"The model keeps {', '.join(sorted(odd)) or 'no usable cache'}; this server moves rows of plain "
            "attention caches. Serve models with recurrent, compressed or shared caches on vLLM."
        )


def _zeros(like: Tensor, rows: int, columns: int) -> Tensor:
    shape = (rows, like.shape[1], columns, like.shape[3])
    return torch.zeros(shape, dtype=like.dtype, device=like.device)
