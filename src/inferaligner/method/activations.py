"""Residual-stream activations at the end of many prompts, at close to the cost of the bare forward pass.

Prompts are sorted by length and packed into batches by tokens; the LM head is not run, no KV cache is
kept (but for beginnings that many prompts share, where the caller asks for that), and the forward stops
after the last layer that is asked for. Only the tokens that are asked for leave the layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from inferaligner.errors import InputError
from inferaligner.models.anatomy import Anatomy, backbone, dissect, input_device, residual
from inferaligner.models.kv_cache import cache_argument
from inferaligner.prompts.encoding import has_pictures, own_positions, seen_inputs
from inferaligner.prompts.shared_prefixes import SharedPrefix, shared_prefixes

Advance = Callable[[int], None]

# Tokens per batch to begin with. On a CPU what a batch computes in between should stay in its caches: 4096
# tokens take a fifth longer than 1024 (benchmarks/README.md). A GPU needs many tokens to be busy.
_TOKENS_ON_CPU = 1024
_TOKENS_ON_ACCELERATOR = 32768

# A shared beginning's keys and values are copied for every row of a batch: at most so many tokens' worth.
_COPIED_TOKENS = 16384


@dataclass(frozen=True)
class Activations:
    """Recorded activations `values[prompts, layers, offsets, width]` in the model's dtype, on the CPU."""

    values: Tensor
    layers: tuple[int, ...]
    offsets: tuple[int, ...]

    def at(self, offset: int = 0) -> Tensor:
        """`[prompts, layers, width]` at one token offset."""
        return self.values[:, :, self.offsets.index(offset)]

    def take(self, rows: Sequence[int] | Tensor) -> Activations:
        """The same for some prompts."""
        return Activations(self.values[torch.as_tensor(rows)], self.layers, self.offsets)


class Recorder(Protocol):
    """What records a model's activations: `record_activations` on that model, or an engine that serves it."""

    def __call__(
        self,
        token_ids: Sequence[Sequence[int]],
        *,
        layers: Sequence[int] | None = None,
        offsets: Sequence[int] = (0,),
        advance: Advance | None = None,
    ) -> Activations:
        """As `record_activations`."""
        ...


class _Enough(Exception):
    """Raised inside the forward pass once the last layer of interest has been recorded."""


_recording: ContextVar[bool] = ContextVar("recording", default=False)


def is_recording() -> bool:
    """Whether this thread's forward pass only records activations, and nobody will read its output."""
    return _recording.get()


class _Recorder:
    """Forward hooks that copy the wanted tokens of one batch out of each wanted layer."""

    def __init__(self, anatomy: Anatomy, layers: Sequence[int]) -> None:
        self.layers = tuple(layers)
        self._columns: dict[torch.device, Tensor] = {}
        self.caught: dict[int, Tensor] = {}
        self._stop_after = max(layers) if max(layers) < anatomy.depth - 1 else None
        self._handles = [anatomy.layers[layer].register_forward_hook(self._hook(layer)) for layer in layers]

    def expect(self, columns: Tensor) -> None:
        """Called before a batch with the token columns `[rows, offsets]` (CPU) that are wanted of it."""
        self._columns = {columns.device: columns}

    def _columns_on(self, device: torch.device) -> Tensor:
        # A copy to an accelerator makes the host wait for it: once a batch, not once a layer.
        if device not in self._columns:
            self._columns[device] = self._columns[torch.device("cpu")].to(device)
        return self._columns[device]

    def _hook(self, layer: int) -> Callable[[nn.Module, object, object], None]:
        def record(module: nn.Module, inputs: object, output: object) -> None:
            stream = residual(output)
            columns = self._columns_on(stream.device)
            rows = torch.arange(stream.shape[0], device=stream.device)[:, None]
            self.caught[layer] = stream[rows, columns]
            if layer == self._stop_after:
                raise _Enough

        return record

    def collect(self) -> Tensor:
        """`[rows, layers, offsets, width]` on the CPU; one transfer a batch."""
        first = self.caught[self.layers[0]]
        return torch.stack([self.caught[layer].to(first.device) for layer in self.layers], dim=1).cpu()

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def record_activations(
    model: PreTrainedModel,
    token_ids: Sequence[Sequence[int]],
    *,
    layers: Sequence[int] | None = None,
    offsets: Sequence[int] = (0,),
    batch_tokens: int | None = None,
    share_prefixes: bool = False,
    advance: Advance | None = None,
) -> Activations:
    """Activations after the given decoder layers (default: all), at `offsets` tokens before the last one.

    `share_prefixes` runs the beginnings that prompts have in common only once, where the model keeps plain
    keys and values; without it every prompt is computed as it would be alone, which in half precision can
    differ in the last digit. Prompts with pictures (`SeenTokens`) run in batches of their own.

    `advance(n)` is called after every batch with the number of prompts it held. The batch size halves by
    itself when the accelerator's memory runs out.
    """
    anatomy = dissect(model)
    wanted = tuple(range(anatomy.depth)) if layers is None else tuple(sorted(set(layers)))
    at = tuple(offsets)
    check_places(token_ids, wanted, at, anatomy.depth)
    budget = batch_tokens or (_TOKENS_ON_CPU if model.device.type == "cpu" else _TOKENS_ON_ACCELERATOR)

    seeing = [row for row, ids in enumerate(token_ids) if has_pictures(ids)]
    reading = [row for row, ids in enumerate(token_ids) if not has_pictures(ids)]
    groups = [SharedPrefix(0, tuple(rows)) for rows in (reading, seeing) if rows]
    # A model with positions of its own goes by those of its last images where there is a cache.
    if share_prefixes and not seeing and _keeps_plain_cache(model) and not own_positions(model.config):
        groups = shared_prefixes(token_ids, keep=max(at) + 1)
    values: Tensor | None = None
    recorder = _Recorder(anatomy, wanted)
    try:
        for group in groups:
            order = sorted(group.rows, key=lambda row: len(token_ids[row]))
            prefix = _read_prefix(model, recorder, token_ids[order[0]][: group.length])
            start = 0 if prefix is None else group.length
            done = 0
            while done < len(order):
                rows = _next_batch(order[done:], token_ids, budget, start)
                caught: Tensor | None = None
                try:
                    caught = _run(model, recorder, [token_ids[row] for row in rows], at, start, prefix)
                except torch.OutOfMemoryError:
                    if len(rows) == 1:
                        raise
                if caught is None:  # only here is the failed pass's memory free: its error held on to it
                    budget = len(rows) * (len(token_ids[rows[-1]]) - start) // 2
                    recorder.caught.clear()
                    torch.cuda.empty_cache()
                    continue
                if values is None:
                    values = torch.empty((len(token_ids), *caught.shape[1:]), dtype=caught.dtype)
                values[torch.tensor(rows)] = caught
                done += len(rows)
                if advance is not None:
                    advance(len(rows))
    finally:
        recorder.remove()
    assert values is not None  # `_check` refused an empty list
    return Activations(values, wanted, at)


@torch.no_grad()
def _run(
    model: PreTrainedModel,
    recorder: _Recorder,
    batch: list[Sequence[int]],
    offsets: tuple[int, ...],
    start: int,
    prefix: DynamicCache | None,
) -> Tensor:
    """One batch from token `start` on, which `prefix` holds the keys and values before of."""
    lengths = torch.tensor([len(ids) - start for ids in batch])
    longest = int(lengths.max())
    # Padding stands on the right, where causal attention never looks at it: the positions and attention of
    # the prompt are those that it has alone. So no mask is needed, and attention without one is faster. Any
    # token will do; the last one again, because a pad token without a mask makes some models warn.
    ids = torch.tensor(
        [[*tokens[start:], *[tokens[-1]] * (start + longest - len(tokens))] for tokens in batch]
    )
    recorder.expect(lengths[:, None] - 1 - torch.tensor(offsets))
    if has_pictures(batch[0]):
        _forward(model, recorder, dict(seen_inputs(batch, "right")), None)
    else:
        cache = None if prefix is None else _repeated(prefix, len(batch))
        _forward(model, recorder, {"input_ids": ids}, cache)
    return recorder.collect()


def _forward(
    model: PreTrainedModel, recorder: _Recorder, inputs: Mapping[str, Tensor], cache: DynamicCache | None
) -> None:
    recorder.caught.clear()
    device = input_device(model)
    token = _recording.set(True)
    try:
        inner = backbone(model)
        inner(
            **{name: value.to(device) for name, value in inputs.items()},
            **({} if cache is None else {cache_argument(inner): cache}),
            use_cache=cache is not None,
        )
    except _Enough:
        pass
    finally:
        _recording.reset(token)


@torch.no_grad()
def _read_prefix(model: PreTrainedModel, recorder: _Recorder, ids: Sequence[int]) -> DynamicCache | None:
    """The keys and values of these tokens; None for no tokens, and for a model that keeps none of them."""
    if not ids:
        return None
    # Without the model's configuration it keeps every token, of sliding layers too; their mask does the rest.
    cache = DynamicCache()
    recorder.expect(torch.zeros((1, 1), dtype=torch.long))
    _forward(model, recorder, {"input_ids": torch.tensor([list(ids)])}, cache)
    return cache if cache.get_seq_length() == len(ids) else None


def _repeated(prefix: DynamicCache, rows: int) -> DynamicCache:
    """A cache for so many rows that begin with the same tokens; `prefix` stays as it is. The layers above the
    last that is recorded were never run and hold nothing."""
    cache = DynamicCache()
    for at, layer in enumerate(prefix.layers):
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            break
        cache.update(layer.keys.expand(rows, -1, -1, -1), layer.values.expand(rows, -1, -1, -1), at)
    return cache


def _keeps_plain_cache(model: PreTrainedModel) -> bool:
    """Whether keys and values are all that the layers carry from token to token: no recurrent state."""
    try:
        layers = DynamicCache(config=model.config).layers
    except (AttributeError, TypeError, ValueError):
        return False
    return bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _next_batch(
    order: Sequence[int], token_ids: Sequence[Sequence[int]], budget: int, start: int
) -> list[int]:
    """As many prompts as fit the budget, padding counted; at least one."""
    rows: list[int] = []
    for row in order:
        full = (len(token_ids[row]) - start) * (len(rows) + 1) > budget
        if rows and (full or start * (len(rows) + 1) > max(budget, _COPIED_TOKENS)):
            break
        rows.append(row)
    return rows


def check_places(
    token_ids: Sequence[Sequence[int]], layers: tuple[int, ...], offsets: tuple[int, ...], depth: int
) -> None:
    """Raises `InputError` for no prompts, layers that a model of `depth` does not have, or offsets before the
    start of a prompt. Every recorder's check."""
    if not token_ids:
        raise InputError("No prompts to record activations of; at least one is needed.")
    if not layers or layers[0] < 0 or layers[-1] >= depth:
        raise InputError(f"Layers {list(layers)} do not exist: the model has layers 0 to {depth - 1}.")
    shortest = min(len(ids) for ids in token_ids)
    if min(offsets) < 0 or max(offsets) >= shortest:
        raise InputError(
            f"Token offsets {list(offsets)} reach before the start of the shortest prompt "
            f"({shortest} tokens). Use smaller offsets, or drop that prompt."
        )
