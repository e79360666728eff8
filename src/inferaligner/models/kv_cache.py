"""The KV cache among the arguments and outputs of a model's forward call.

transformers documents the cache's class (`transformers.Cache`), that a cache is updated in place, and
`get_seq_length()`. The name of the argument differs between versions and models: `past_key_values` or
`cache_params` up to 5.23, `cache` from 5.24 on, `state` in RWKV. So a cache is recognised by its class; the
names are used to pass a cache, and to recognise the tuples of older model code.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from transformers import Cache, GenerationMixin

_NAMES = ("cache", "past_key_values", "cache_params", "state")


def cache_in(values: Any) -> Any:
    """The KV cache among a forward call's arguments (a mapping) or in its output; None without one."""
    if isinstance(values, tuple):
        return next((item for item in values if _is_cache(item)), None)
    named = values if isinstance(values, Mapping) else getattr(values, "__dict__", {})
    cache = next((item for item in named.values() if _is_cache(item)), None)
    if cache is not None:
        return cache
    # Tuples and lists of tensors, which models without a cache class use, are recognised by their names.
    return next((named[name] for name in _NAMES if name in named and named[name] is not None), None)


def cache_argument(model: Any) -> str:
    """The name under which a model's forward takes its KV cache."""
    taken = inspect.signature(model.forward).parameters
    # A forward with `**kwargs` alone has no names; transformers' own models give the name then.
    usual = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return next(name for names in (taken, usual, _NAMES) for name in _NAMES if name in names)


def _is_cache(value: Any) -> bool:
    return isinstance(value, Cache) or hasattr(value, "get_seq_length")
