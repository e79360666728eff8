"""The logits processors of a `generate` call from whose batch rows leave.

Most processors of transformers look at each row by itself. The repetition penalty may hold the padding of
each row, which has to move with the rows. Processors of this package that act on the rows that are in the
batch say so with `follows_rows = True`. Others may hold anything per row; with them, no row can leave.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation import logits_process, stopping_criteria

# By name, because not every supported version has all of them.
_STATELESS = tuple(
    getattr(logits_process, name)
    for name in (
        "ExponentialDecayLengthPenalty",
        "ForcedBOSTokenLogitsProcessor",
        "ForcedEOSTokenLogitsProcessor",
        "InfNanRemoveLogitsProcessor",
        "LogitNormalization",
        "MinLengthLogitsProcessor",
        "MinNewTokensLengthLogitsProcessor",
        "NoBadWordsLogitsProcessor",
        "NoRepeatNGramLogitsProcessor",
        "SequenceBiasLogitsProcessor",
        "SuppressTokensAtBeginLogitsProcessor",
        "SuppressTokensLogitsProcessor",
    )
    if hasattr(logits_process, name)
)
_CRITERIA = (
    stopping_criteria.EosTokenCriteria,
    stopping_criteria.MaxLengthCriteria,
    stopping_criteria.MaxTimeCriteria,
)
_PADDING = "prompt_ignore_length"  # of a repetition penalty: a number, or a tensor [rows]


def rows_can_leave(processors: Iterable[Any], criteria: Iterable[Any]) -> bool:
    """Whether these processors and stopping criteria work on a batch that shrinks."""
    return all(type(one) in _CRITERIA for one in criteria) and all(
        type(one) in (*_STATELESS, logits_process.RepetitionPenaltyLogitsProcessor)
        or getattr(one, "follows_rows", False)
        for one in processors
    )


def select_rows(processors: Iterable[Any], rows: Tensor) -> Any:
    """The processors for some rows (indices) of their batch."""

    def selected(one: Any) -> Any:
        padding = getattr(one, _PADDING, None)
        return _with(one, padding[rows.to(padding.device)]) if isinstance(padding, Tensor) else one

    return LogitsProcessorList(map(selected, processors))


def join_rows(ours: Iterable[Any], theirs: Iterable[Any]) -> Any:
    """The processors for the rows of two parts of one batch."""

    def joined(one: Any, other: Any) -> Any:
        padding = getattr(one, _PADDING, None)
        if not isinstance(padding, Tensor):
            return one
        return _with(one, torch.cat([padding, getattr(other, _PADDING)]))

    return LogitsProcessorList(joined(one, other) for one, other in zip(ours, theirs, strict=True))


def _with(processor: Any, padding: Tensor) -> Any:
    changed = copy.copy(processor)
    setattr(changed, _PADDING, padding)
    return changed
