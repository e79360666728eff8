"""Which new prompts go through the model together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from inferaligner.server.engine.batch import length_groups


def jobs(lengths: Sequence[int]) -> list[Any]:
    return [SimpleNamespace(prompt=SimpleNamespace(tokens=(1,) * length)) for length in lengths]


def lengths_of(passes: Sequence[Sequence[Any]]) -> list[list[int]]:
    return [[len(job.prompt.tokens) for job in one] for one in passes]


def test_a_long_prompt_does_not_make_the_short_ones_long() -> None:
    assert lengths_of(length_groups(jobs([50, 400, 55, 60, 390]), 24)) == [[50, 55, 60], [390, 400]]
    assert lengths_of(length_groups(jobs([70] * 9), 24)) == [[70] * 9]
    assert lengths_of(length_groups(jobs([3, 30, 12]), 64)) == [[3, 12, 30]]  # not worth a pass
    assert length_groups([], 24) == []


@pytest.mark.parametrize("seed", range(20))
def test_no_other_cut_of_the_sorted_prompts_costs_less(seed: int) -> None:
    draw = random.Random(seed)
    given = jobs([draw.randint(1, 200) for _ in range(draw.randint(1, 9))])
    passes = length_groups(given, 40)
    assert sorted(map(id, given)) == sorted(id(job) for one in passes for job in one)

    def cost(cut: Sequence[Sequence[int]]) -> int:
        return sum(max(part) * len(part) + 40 for part in cut)

    lengths = sorted(len(job.prompt.tokens) for job in given)
    cuts = []
    for borders in range(2 ** (len(lengths) - 1)):
        parts: list[list[int]] = [[lengths[0]]]
        for at, length in enumerate(lengths[1:]):
            if borders >> at & 1:
                parts.append([])
            parts[-1].append(length)
        cuts.append(parts)
    assert cost(lengths_of(passes)) == min(map(cost, cuts))
