"""A second prefill for the rows that opened.

Needed where the decision comes too late for one pass: a steered layer lies below the gate, or all prompt
positions are to be steered and the prompt came in chunks. Closed rows are not run again; their logits and
cache entries stay the ones of the first pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from inferaligner.errors import SteeringError

Run = Callable[[dict[str, Any], Tensor], Any]


def replay(prefill: list[dict[str, Any]], cache_before: Any, cache: Any, rows: Tensor, run: Run, last: Any) -> Any:
    """Runs the recorded prefill passes again for `rows` (indices) and merges the results.

    `run(arguments, rows)` is one steered forward call. Returns the last pass's output with those rows
    replaced; `cache` is updated in place.
    """
    batch = _tokens(prefill[0]).shape[0]
    subset = rows
    if cache_before is not None and not _selectable(cache_before):
        # Caches of fixed shape cannot lose rows; run the whole batch and keep the open rows only.
        subset = torch.arange(batch)
    elif cache_before is not None and len(subset) < batch and _holds_tokens(cache_before):
        cache_before.batch_select_indices(subset)
    output: Any = None
    for arguments in prefill:
        picked = {name: _pick(value, subset, batch) for name, value in arguments.items()}
        if cache_before is not None:
            picked["past_key_values"] = cache_before
        output = run(picked, subset)
    kept = torch.arange(len(subset)) if len(subset) == len(rows) else rows
    if cache is not None:
        _write_cache(cache, cache_before, rows, kept)
    return _merge(last, output, rows, kept, batch)


def copy_of_cache(cache: Any) -> Any:
    """The cache as it is before the prompt, for a replay to start from."""
    return None if cache is None else copy.deepcopy(cache)


def _tokens(arguments: Mapping[str, Any]) -> Tensor:
    ids = arguments.get("input_ids")
    tokens: Tensor = ids if ids is not None else arguments["inputs_embeds"]
    return tokens


def _pick(value: Any, rows: Tensor, batch: int) -> Any:
    if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == batch:
        return value[rows.to(value.device)]
    if isinstance(value, dict):
        return {name: _pick(item, rows, batch) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_pick(item, rows, batch) for item in value)
    return value


def _layers(cache: Any) -> list[Any]:
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise SteeringError(
            f"The KV cache {type(cache).__name__} cannot be replayed. "
            "Use positions='from_gate' with every steered layer above the gate, or a cache of transformers."
        )
    return list(layers)


def _selectable(cache: Any) -> bool:
    return all(isinstance(layer, DynamicLayer) for layer in _layers(cache))


def _holds_tokens(cache: Any) -> bool:
    return any(getattr(layer, "is_initialized", False) for layer in _layers(cache))


def _write_cache(cache: Any, replayed: Any, rows: Tensor, kept: Tensor) -> None:
    for layer, source in zip(_layers(cache), _layers(replayed), strict=True):
        for name in ("keys", "values"):
            target, new = getattr(layer, name, None), getattr(source, name, None)
            if not isinstance(target, Tensor) or not isinstance(new, Tensor) or target.shape[1:] != new.shape[1:]:
                raise SteeringError(
                    f"Cache layer {type(layer).__name__} cannot take replayed rows. "
                    "Use positions='from_gate' with every steered layer above the gate."
                )
            target[rows.to(target.device)] = new[kept.to(new.device)]


def _merge(first: Any, replayed: Any, rows: Tensor, kept: Tensor, batch: int) -> Any:
    if isinstance(first, Tensor):
        if first.ndim == 0 or first.shape[0] != batch:
            return first
        merged = first.clone()
        merged[rows.to(first.device)] = replayed[kept.to(first.device)]
        return merged
    if isinstance(first, tuple):
        return tuple(_merge(a, b, rows, kept, batch) for a, b in zip(first, replayed, strict=True))
    if isinstance(first, dict):  # ModelOutput is an ordered dictionary
        for name, value in list(first.items()):
            if name != "past_key_values":
                first[name] = _merge(value, replayed[name], rows, kept, batch)
    return first
