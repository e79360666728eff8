"""`reproduction/operating_point.py` on scores whose truth is known."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest
from reproduction.operating_point import raw_expected, read_kinds, simulate


def scores(n: int, seed: int = 0) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(0, 1) for _ in range(n)]


def test_the_promise_is_kept_and_the_raw_count_is_as_predicted() -> None:
    (kept,) = simulate({"a": scores(800)}, max_false_open=0.05, confidence=0.9, splits=1000)
    assert (kept.calibration, kept.evaluation, kept.promised) == (400, 400, True)
    assert kept.population >= 900 and kept.within >= 900
    assert abs(kept.raw / 1000 - kept.raw_expected) < 4 * math.sqrt(0.25 / 1000)
    assert kept.mean_rate < 0.05


def test_too_few_scores_are_measured_against_what_they_allow() -> None:
    (kept,) = simulate({"a": scores(40)}, max_false_open=0.01, splits=200)
    assert not kept.promised and kept.epsilon == pytest.approx(1 - 0.05 ** (1 / 20))
    assert kept.population >= 185


def test_traffic_that_moves_is_only_seen_in_order() -> None:
    moving = [*scores(500), *(score + 3 for score in scores(500, 1))]
    (shuffled,) = simulate({"a": moving}, max_false_open=0.02, splits=50)
    (in_order,) = simulate({"a": moving}, max_false_open=0.02, seed=None)
    assert shuffled.within >= 45
    assert (in_order.splits, in_order.within, in_order.population) == (1, 0, 0)


def test_beta_binomial_by_hand() -> None:
    # Above the largest of n: none of m new ones with probability n / (n + m).
    assert raw_expected(30, 10, 0, 0) == pytest.approx(30 / 40)
    assert raw_expected(5, 7, 2, 7) == pytest.approx(1.0)


def test_reading(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    rows = [{"kind": "math", "score": 1}, {"kind": "code", "score": -2.5}, {"score": 3.0}]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert read_kinds(file) == {"math": [1.0], "code": [-2.5], "all": [3.0]}
    file.write_text('{"kind": "math", "score": null}\n')
    with pytest.raises(SystemExit, match="line 1"):
        read_kinds(file)


def test_what_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="cannot be split"):
        simulate({"a": [1.0]})
