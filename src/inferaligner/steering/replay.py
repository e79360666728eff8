"""A second prefill for the rows that opened.

It is needed where the decision comes too late for one pass: a steered layer lies below the gate, or all
prompt positions are steered and the prompt came in chunks. Closed rows keep the logits and cache entries of
the first pass.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from inferaligner.errors import SteeringError
from inferaligner.models.kv_cache import cache_in

Run = Callable[[dict[str, Any], Tensor], Any]

# Arguments whose tensors have the rows as their first axis (or one row for all).
_BY_ROW = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "token_type_ids")


def replay(
    prefill: list[dict[str, Any]], cache_before: Any, cache: Any, rows: Tensor, run: Run, last: Any
) -> Any:
    """Runs the recorded prefill passes again for some rows, and merges the results.

    Args:
        prefill: arguments of the passes.
        cache_before: copy of the KV cache before the prompt; None without a cache.
        cache: the KV cache after the prompt; updated in place.
        rows: indices `[rows]` of the open rows.
        run: one steered forward call, from arguments and row indices.
        last: output of the last pass.

    Returns:
        `last` with these rows replaced.

    Raises:
        SteeringError: the cache is of a kind whose rows cannot be replaced.
    """
    first = prefill[0].get("input_ids")
    batch = (first if first is not None else prefill[0]["inputs_embeds"]).shape[0]
    subset = rows
    if not _separable(prefill, cache_before):
        # Run the whole batch, steering the open rows, and keep those.
        subset = torch.arange(batch)
    elif cache_before is not None and len(subset) < batch and _holds_tokens(cache_before):
        cache_before.batch_select_indices(subset)
    output: Any = None
    for arguments in prefill:
        picked = {name: _pick(name, value, subset, batch) for name, value in arguments.items()}
        if cache_before is not None:
            picked[_cache_name(arguments)] = cache_before
        output = run(picked, subset)
    kept = torch.arange(len(subset)) if len(subset) == len(rows) else rows
    if cache is not None:
        _write_cache(cache, cache_in(output) if cache_before is None else cache_before, rows, kept)
    return _merge(last, output, rows, kept, batch)


def copy_of_cache(cache: Any) -> Any:
    """A copy of the cache before the prompt, from which a replay starts."""
    return None if cache is None else copy.deepcopy(cache)


def own_tensors(output: Any) -> Any:
    """Copies of a compiled pass's output, except its cache: the next run of a CUDA graph overwrites it."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, tuple):
        return tuple(own_tensors(item) for item in output)
    if isinstance(output, dict):
        for name, value in list(output.items()):
            if value is not cache_in(output):
                output[name] = own_tensors(value)
    return output


def _separable(prefill: list[dict[str, Any]], cache: Any) -> bool:
    """Whether some rows can be run alone: not with caches of fixed shape, image inputs or labels."""
    if cache is not None and not all(isinstance(layer, DynamicLayer) for layer in _layers(cache)):
        return False
    return all(
        name in _BY_ROW or name == _cache_name(arguments) or isinstance(value, (bool, int, str, type(None)))
        for arguments in prefill
        for name, value in arguments.items()
    )


def _cache_name(arguments: Mapping[str, Any]) -> str:
    """Name of the argument that holds the cache; "cache" where there is none."""
    cache = cache_in(arguments)
    return next((name for name, value in arguments.items() if value is cache), "cache")


def _pick(name: str, value: Any, rows: Tensor, batch: int) -> Any:
    if len(rows) == batch:
        return value
    if isinstance(value, Tensor):
        at = 1 if name == "position_ids" and value.ndim == 3 else 0  # with several axes, those come first
        return value.index_select(at, rows.to(value.device)) if value.shape[at] == batch else value
    if isinstance(value, dict):  # one mask per kind of attention
        return {kind: _pick(name, item, rows, batch) for kind, item in value.items()}
    return value


def _layers(cache: Any) -> list[Any]:
    layers = getattr(cache, "layers", None)
    if layers is None:
        raise SteeringError(
            f"The KV cache {type(cache).__name__} cannot be replayed. "
            "Use positions='from_gate' with every steered layer above the gate, or a cache of transformers."
        )
    return list(layers)


def _holds_tokens(cache: Any) -> bool:
    return any(getattr(layer, "is_initialized", False) for layer in _layers(cache))


def _write_cache(cache: Any, replayed: Any, rows: Tensor, kept: Tensor) -> None:
    for layer, source in zip(_layers(cache), _layers(replayed), strict=True):
        for name in ("keys", "values"):
            target: Any = getattr(layer, name, None)
            new: Any = getattr(source, name, None)
            fits = (
                isinstance(target, Tensor) and isinstance(new, Tensor) and target.shape[1:] == new.shape[1:]
            )
            if not fits:
                raise SteeringError(
                    f"Cache layer {type(layer).__name__} cannot take replayed rows. "
                    "Use positions='from_gate' with every steered layer above the gate."
                )
            target[rows.to(target.device)] = new[kept.to(new.device)]


def _merge(first: Any, replayed: Any, rows: Tensor, kept: Tensor, batch: int) -> Any:
    if isinstance(first, Tensor):
        if first.ndim == 0:  # a loss; labels are never split, so the replay's is of the whole batch
            return replayed
        if first.shape[0] != batch:
            return first
        merged = first.clone()
        merged[rows.to(first.device)] = replayed[kept.to(first.device)]
        return merged
    if isinstance(first, tuple):
        return tuple(_merge(a, b, rows, kept, batch) for a, b in zip(first, replayed, strict=True))
    if isinstance(first, dict):  # ModelOutput is an ordered dictionary
        for name, value in list(first.items()):
            if value is not cache_in(first):
                first[name] = _merge(value, replayed[name], rows, kept, batch)
    return first
