"""Groups of prompts that begin with the same tokens, so that the shared prefix runs through the model once.

Every rendered chat begins with the template's own tokens and the system prompt, and prompts in one wrapper
share the wrapper up to their content. In a causal model the residual stream over a prefix does not depend on
later tokens, so its keys and values are computed once and the rest of each prompt continues from them (prefix
caching).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

# From these sizes on a prefix of its own saves time: its pass costs about as much as a small batch.
_LONGER_BY = 32
_FEWEST_ROWS = 4


@dataclass(frozen=True)
class SharedPrefix:
    """The `rows` of prompts whose first `length` tokens are the same; 0 if they share no prefix."""

    length: int
    rows: tuple[int, ...]


def shared_prefixes(token_ids: Sequence[Sequence[int]], keep: int = 1) -> list[SharedPrefix]:
    """Groups prompts by their prefixes; every row is in exactly one group.

    There are two levels: the prefix that all prompts share, and groups of at least four prompts that share at
    least 32 tokens more.

    Args:
        token_ids: The token ids of each prompt.
        keep: At least this many tokens of each prompt stay outside its prefix.
    """
    order = sorted(range(len(token_ids)), key=lambda row: list(token_ids[row]))
    if len(order) < 2:
        return [SharedPrefix(0, tuple(order))] if order else []
    common = [_common(token_ids[a], token_ids[b]) for a, b in pairwise(order)]
    # A prompt that is the beginning of another one still keeps its last tokens.
    room = min(len(ids) for ids in token_ids) - keep
    everyone = max(0, min(min(common), room))
    groups: list[SharedPrefix] = []
    rest: list[int] = []
    start = 0
    for at in range(1, len(order) + 1):
        if at < len(order) and common[at - 1] >= everyone + _LONGER_BY:
            continue
        run = order[start:at]
        length = min([*common[start : at - 1], *(len(token_ids[row]) - keep for row in run)])
        if len(run) >= _FEWEST_ROWS and length >= everyone + _LONGER_BY:
            groups.append(SharedPrefix(length, tuple(run)))
        else:
            rest.extend(run)
        start = at
    return [SharedPrefix(everyone, tuple(rest)), *groups] if rest else groups


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two prompts share at their beginnings."""
    shortest = min(len(one), len(other))
    for at in range(shortest):
        if one[at] != other[at]:
            return at
    return shortest
