"""The KV cache of rows that join and leave while others are being decoded.

Every layer is one buffer `[row capacity, heads, column capacity, head width]`, and the rows in use are a
window of it. All rows end at the same column, so a row's tokens stand to the right and what is left of them
is masked: the layout of left padding, which every model that `generate` can batch understands, sliding
windows and position biases included. A new token costs one write, where concatenation would copy the cache.

Masked columns hold zeros, never what another request left there: attention gives them the weight 0, and
0 · NaN would still be NaN.
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
    """Which part of the buffers is in use; one for all layers."""

    def __init__(self) -> None:
        self.rows = 0
        self.start = 0
        self.end = 0

    @property
    def width(self) -> int:
        return self.end - self.start


class _Layer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """One layer's buffers. `end` runs ahead of the window's while a pass is under way."""

    is_sliding = False

    def __init__(self, window: _Window, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_initialized = True
        self.dtype, self.device = keys.dtype, keys.device
        self._window = window
        self.keys, self.values = keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the buffers are made before the first pass."""

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Writes the new token of every row; `[rows, heads, 1, head width]` in, the whole window out."""
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
        """Length and offset of what a mask covers."""
        return self._window.width + query_length, 0

    def get_seq_length(self) -> int:
        """Columns in use, masked ones counted."""
        return self._window.width

    def get_max_length(self) -> int:
        """No limit."""
        return -1


class RunningCache(Cache):
    """The cache of the running rows. The engine's thread alone touches it."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.window = _Window()
        self.lengths: list[int] = []  # tokens of each row

    @property
    def rows(self) -> int:
        """Rows in use."""
        return self.window.rows

    def mask(self, device: torch.device) -> Tensor:
        """The attention mask of the coming step, `[rows, columns + 1]`."""
        lengths = torch.tensor(self.lengths, device=device)[:, None] + 1
        width = self.window.width + 1
        return (torch.arange(width, device=device)[None] >= width - lengths).long()

    def reserve(self, columns: int = 1) -> None:
        """Room for a pass over so many new tokens of each row; called before it."""
        layer: Any = self.layers[0]
        if self.window.end + columns > layer.keys.shape[2]:
            self._resize(layer.keys.shape[0], self.window.width + columns + _SPARE_COLUMNS)

    def advance(self, columns: int = 1) -> None:
        """Called after a pass that went well; without it, the pass has never been."""
        self.window.end += columns
        self.lengths = [length + columns for length in self.lengths]

    def admit(self, source: Cache, rows: Sequence[int], lengths: Sequence[int]) -> None:
        """Takes over rows (indices) of a prefill's cache, of which the last `lengths` columns are tokens."""
        if rows:
            check_kind(source)
            layers: Sequence[Any] = source.layers
            self._take([(layer.keys, layer.values) for layer in layers], rows, lengths)

    def absorb(self, other: RunningCache) -> None:
        """Takes over all rows of another one, in order."""
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
        """Lets all other rows go; returns the kept ones in their new order (holes are filled)."""
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
        """A cache of its own with copies of some rows."""
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
        """Lets go of everything, memory included."""
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
        """New buffers with the window `shift` columns from their left edge."""
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
    """Raises `SteeringError` unless rows of such a cache can be told apart and moved."""
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
