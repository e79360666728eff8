"""Which new prompts go through the model together."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from inferaligner.server.batch import alike


def jobs(lengths: Sequence[int]) -> list[Any]:
    return [SimpleNamespace(prompt=SimpleNamespace(tokens=(1,) * length)) for length in lengths]


def lengths_of(passes: Sequence[Sequence[Any]]) -> list[list[int]]:
    return [[len(job.prompt.tokens) for job in one] for one in passes]


def test_a_long_prompt_does_not_make_the_short_ones_long() -> None:
    assert lengths_of(alike(jobs([50, 400, 55, 60, 390]))) == [[50, 55, 60], [390, 400]]
    assert lengths_of(alike(jobs([70] * 9))) == [[70] * 9]
    assert lengths_of(alike(jobs([3, 30, 12]))) == [[3, 12, 30]]  # not worth a pass
    assert alike([]) == []


@pytest.mark.parametrize("seed", range(20))
def test_every_prompt_is_in_one_pass_and_little_is_padding(seed: int) -> None:
    draw = random.Random(seed)
    given = jobs([draw.randint(1, 600) for _ in range(draw.randint(1, 40))])
    passes = alike(given)
    assert sorted(map(id, given)) == sorted(id(job) for one in passes for job in one)
    for row in lengths_of(passes):
        assert max(row) * len(row) - sum(row) <= max(64, 0.15 * sum(row))
