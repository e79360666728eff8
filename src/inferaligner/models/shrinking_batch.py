"""Greedy decoding in which rows that have ended leave the batch.

transformers computes every row until the last one has ended. Here the rows that have ended are dropped as
soon as they are a quarter of the batch. `ShrinkingBatch` is a `custom_generate` function of `model.generate`:
the call is prepared by transformers, wrappers around `generate` (a guard's) act, and each pass is made of the
same parts as in transformers' own loop, so that the numbers are the same bit for bit up to the first drop.

A pass over fewer rows may use other kernels, which round differently, and where two tokens are about equally
likely, that can decide between them. So a run can be kept in step with another one over the same prompts: it
drops the rows where that run did, whatever its own rows do. Rows that are alike in both runs then go through
passes of the same sizes and get the same bits. Rows that have to leave before they have ended go on
afterwards, in a batch of their own.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from inferaligner.models.batch_processors import join_rows, rows_can_leave, select_rows
from inferaligner.models.kv_cache import cache_in
from inferaligner.models.row_keepers import keepers_on
from inferaligner.models.unwrap import unwrap

_SHARE = 4  # rows are dropped when one in so many has left
_BY_ROW = ("attention_mask", "position_ids", "token_type_ids")
_PARTS = ("_sample", "_prefill", "_update_model_kwargs_for_generation", "prepare_inputs_for_generation")
_LAYERS = (DynamicLayer, DynamicSlidingWindowLayer)


def can_shrink(model: Any) -> bool:
    """Whether a greedy `generate` call of this model, without further settings, can drop rows.

    Compiled models cannot: they would be compiled again for every size of the batch.
    """
    inner: Any = unwrap(model)
    own: Any = type(inner)
    if not issubclass(own, GenerationMixin) or not all(hasattr(own, name) for name in _PARTS):
        return False
    if own.generate is not GenerationMixin.generate or own._sample is not GenerationMixin._sample:
        return False
    compiled = (hasattr(model, "_orig_mod"), getattr(inner, "_compiled_call_impl", None) is not None)
    if any(compiled) or hasattr(inner.forward, "_torchdynamo_orig_callable"):
        return False
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return False
    config: Any = inner.generation_config
    return (
        (config.num_beams or 1) == 1
        and (config.num_return_sequences or 1) == 1
        and config.use_cache is not False
        and not any(
            getattr(config, name, None)
            for name in (
                "cache_implementation",
                "constraints",
                "dola_layers",
                "force_words_ids",
                "penalty_alpha",
                "prompt_lookup_num_tokens",
                "return_dict_in_generate",
                "use_mtp",
            )
        )
    )


@dataclass
class _Part:
    """Rows that are decoded together, all after `step` new tokens.

    `states` are those of the model's keepers, while these rows wait.
    """

    rows: list[int]
    ids: Tensor
    arguments: dict[str, Any]
    processors: Any
    going: Tensor  # [rows] bool: not ended
    step: int
    states: list[Any]

    @property
    def cache(self) -> Any:
        return cache_in(self.arguments)

    def keep(self, places: Sequence[int]) -> None:
        """Drops all rows but those in these places."""
        picked = torch.tensor(list(places), dtype=torch.long, device=self.ids.device)
        self.rows = [self.rows[at] for at in places]
        self.ids, self.going = self.ids[picked], self.going[picked]
        self.processors = select_rows(self.processors, picked)
        for name in _BY_ROW:
            if self.arguments.get(name) is not None:
                self.arguments[name] = self.arguments[name][picked.to(self.arguments[name].device)]
        for layer in self.cache.layers:
            layer.batch_select_indices(picked.to(layer.keys.device))

    def split(self, places: Sequence[int], states: list[Any]) -> _Part:
        """A copy of the rows in these places; it shares no cache with this part."""
        cache, name = copy.copy(self.cache), next(n for n, v in self.arguments.items() if v is self.cache)
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        arguments = {**self.arguments, name: cache}
        part = _Part(self.rows, self.ids, arguments, self.processors, self.going, self.step, states)
        part.keep(places)
        return part

    def join(self, other: _Part) -> None:
        """Adds the rows of another part that is as far as this one."""
        self.rows = self.rows + other.rows
        self.ids, self.going = torch.cat([self.ids, other.ids]), torch.cat([self.going, other.going])
        self.processors = join_rows(self.processors, other.processors)
        for name in _BY_ROW:
            if self.arguments.get(name) is not None:
                self.arguments[name] = torch.cat([self.arguments[name], other.arguments[name]])
        for layer, more in zip(self.cache.layers, other.cache.layers, strict=True):
            layer.keys = torch.cat([layer.keys, more.keys])
            layer.values = torch.cat([layer.values, more.values])


class ShrinkingBatch:
    """One `generate` call; passed to it as `custom_generate`."""

    def __init__(self, in_step_with: Sequence[int] | None = None) -> None:
        """`in_step_with`: tokens per row, end token included, in the run whose batch sizes are kept."""
        self._lengths = None if in_step_with is None else list(in_step_with)

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        **model_kwargs: Any,
    ) -> Tensor:
        """Returns prompts with answers `[rows, tokens]`, as `generate` does, which gives the arguments."""
        separable = _separable(model_kwargs, len(input_ids))
        if not separable or not rows_can_leave(logits_processor, stopping_criteria):
            whole: Tensor = model._sample(
                input_ids,
                logits_processor=logits_processor,
                stopping_criteria=stopping_criteria,
                generation_config=generation_config,
                **model_kwargs,
            )
            return whole
        run = _Run(model, stopping_criteria, generation_config, self._lengths)
        return run.answers(input_ids, model_kwargs, logits_processor)


class _Run:
    def __init__(self, model: Any, criteria: Any, config: Any, lengths: list[int] | None) -> None:
        self._model = model
        self._criteria = criteria
        self._config = config
        self._lengths = lengths
        self._pad = _padding(config)
        self._keepers = keepers_on(model)
        self._done: dict[int, tuple[Tensor, list[Any]]] = {}  # by row: its tokens, its keepers' states
        self._waiting: list[_Part] = []
        self._shrinks = False

    def answers(self, ids: Tensor, arguments: dict[str, Any], processors: Any) -> Tensor:
        going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        part = _Part(list(range(len(ids))), ids, arguments, processors, going, 0, [])
        output = self._model._prefill(ids, self._config, arguments, is_first_iteration=True)
        self._choose(part, output)
        del output
        optimized: AbstractContextManager[Any] = getattr(
            self._model, "_optimize_model_for_decode", nullcontext
        )()
        self._shrinks = _filled(part.cache, len(ids))
        with optimized:
            self._decode(part, self._lengths if self._shrinks else None)
            while self._waiting:
                # The first to leave goes on until it has caught up with the next one, which joins it.
                part = self._waiting.pop(0)
                self._carry_on(part, part.states)
                self._decode(part, None)
        return self._finished(len(ids))

    def _decode(self, part: _Part, lengths: list[int] | None) -> None:
        """Decodes rows to their ends; with `lengths` they leave after so many tokens, not at their ends."""
        while True:
            while lengths is None and self._waiting and self._waiting[0].step == part.step:
                self._join(part, self._waiting.pop(0))
            going = part.going.tolist()
            if not any(going):
                break
            if lengths is None:
                leaving = [not goes for goes in going]
            else:
                leaving = [lengths[row] <= part.step for row in part.rows]
            if all(leaving):  # but some of them go on: with those that left before them
                part.states = self._states()
                self._waiting.append(part)
                return
            if self._shrinks and sum(leaving) * _SHARE >= len(leaving):
                self._drop(part, leaving, going)
                continue
            inputs = self._model.prepare_inputs_for_generation(
                part.ids, next_sequence_length=1, **part.arguments
            )
            self._choose(part, self._model(**inputs, return_dict=True))
        self._store(part, range(len(part.rows)), self._states())

    def _choose(self, part: _Part, output: Any) -> None:
        """Appends each row's next token."""
        part.arguments = self._model._update_model_kwargs_for_generation(output, part.arguments)
        logits = output.logits[:, -1].to(copy=True, dtype=torch.float32, device=part.ids.device)
        tokens = part.processors(part.ids, logits).argmax(dim=-1)
        tokens = torch.where(part.going, tokens, self._pad)
        part.ids = torch.cat([part.ids, tokens[:, None]], dim=-1)
        part.going = part.going & ~self._criteria(part.ids, None)
        part.step += 1

    def _drop(self, part: _Part, leaving: Sequence[bool], going: Sequence[bool]) -> None:
        ended = [at for at, leaves in enumerate(leaving) if leaves and not going[at]]
        early = [at for at, leaves in enumerate(leaving) if leaves and going[at]]
        kept = [at for at, leaves in enumerate(leaving) if not leaves]
        states = self._states()
        self._store(part, ended, states)
        if early:
            self._waiting.append(part.split(early, [state.select(early) for state in states]))
        part.keep(kept)
        self._carry_on(part, [state.select(kept) for state in states])

    def _join(self, part: _Part, other: _Part) -> None:
        states = [
            type(ours).join([ours, theirs]) for ours, theirs in zip(self._states(), other.states, strict=True)
        ]
        part.join(other)
        self._carry_on(part, states)

    def _states(self) -> list[Any]:
        return [keeper.carried() for keeper in self._keepers]

    def _carry_on(self, part: _Part, states: Sequence[Any]) -> None:
        for keeper, state in zip(self._keepers, states, strict=True):
            keeper.carry_on(state, part.cache)

    def _store(self, part: _Part, places: Sequence[int], states: Sequence[Any]) -> None:
        for at in places:
            self._done[part.rows[at]] = (part.ids[at], [state.select([at]) for state in states])

    def _finished(self, rows: int) -> Tensor:
        """All rows in their order, padded on the right; the keepers get the states of all of them."""
        done = [self._done[row] for row in range(rows)]
        for number, keeper in enumerate(self._keepers):
            states = [states[number] for _, states in done]
            keeper.carry_on(type(states[0]).join(states), None)
        return torch.nn.utils.rnn.pad_sequence(
            [ids for ids, _ in done], batch_first=True, padding_value=self._pad
        )


def _separable(arguments: dict[str, Any], rows: int) -> bool:
    """Whether the state between two passes consists of parts that are known to have one entry per row."""
    cache = cache_in(arguments)
    if type(cache) is not DynamicCache or any(type(layer) not in _LAYERS for layer in cache.layers):
        return False
    tensors = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    return all(name in _BY_ROW and value.ndim == 2 and len(value) == rows for name, value in tensors.items())


def _filled(cache: Any, rows: int) -> bool:
    """Whether the model uses the cache that it was given; code of a checkpoint may have one of its own."""
    layers = getattr(cache, "layers", None) or []
    return bool(layers) and all(
        type(layer) in _LAYERS and isinstance(layer.keys, Tensor) and len(layer.keys) == rows
        for layer in layers
    )


def _padding(config: Any) -> int:
    ends = config.eos_token_id
    first = ends[0] if isinstance(ends, (list, tuple)) else ends
    pad = config.pad_token_id if config.pad_token_id is not None else first
    return int(pad) if pad is not None else 0  # without an end token no row is ever padded
