"""Metrics and comparisons on records whose figures are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from inferaligner.errors import InputError
from inferaligner.evaluation.metrics import result_rows
from inferaligner.evaluation.paired_statistics import compare, mcnemar, median_interval


def record(method: str, row: int, outcome: str, **more: Any) -> dict[str, Any]:
    return {
        "method": method,
        "suite": "asked",
        "row": row,
        "kind": "harmful",
        "task": "reply",
        "domain": "a" if row % 2 else "b",
        "outcome": outcome,
        "digest": f"{method if outcome == 'refusal' else 'same'}{row}",
        "shared": False,
        **more,
    }


def by_name(records: list[dict[str, Any]]) -> dict[tuple[str, str, str], dict[str, Any]]:
    return {(r["method"], r["suite"], r["metric"]): r for r in result_rows(records)}


def test_rates_differences_and_gates() -> None:
    bare = [record("none", row, "compliance") for row in range(20)]
    ours = [
        record("ours", row, "refusal" if row < 12 else "compliance", score=12.0 - row, open=row < 12)
        for row in range(20)
    ]
    benign = [
        {**record(m, row, "compliance"), "suite": "calm", "kind": "benign", **more}
        for m, more in (("none", {}), ("ours", {"score": -1.0, "open": False}))
        for row in range(10)
    ]
    rows = by_name([*bare, *ours, *benign])
    assert set(next(iter(rows.values()))) == {
        "method",
        "suite",
        "metric",
        "value",
        "low",
        "high",
        "n",
        "judge",
    }
    refusal = rows["ours", "asked", "refusal"]
    assert (refusal["value"], refusal["n"], refusal["judge"]) == (0.6, 20, "rules")
    gap = rows["ours", "asked", "refusal, against none"]
    assert gap["value"] == pytest.approx(0.6) and gap["low"] > 0.3 and gap["high"] < 0.9
    assert rows["ours", "asked", "identical to the bare model"]["value"] == pytest.approx(0.4)
    assert rows["ours", "calm", "closed and identical"]["value"] == 1.0
    assert rows["ours", "asked", "gate open"]["judge"] is None
    assert rows["ours", "asked / a", "gate open"]["n"] == 10
    assert rows["ours", "harmful / harmless", "gate AUROC"]["value"] == pytest.approx(0.675)
    assert ("none", "asked", "gate open") not in rows


def test_an_answer_that_was_cut_off_is_no_refusal_that_ended() -> None:
    bare = [record("none", row, "compliance", ended=False, looped=row < 5) for row in range(10)]
    ours = [record("ours", row, "refusal", ended=row < 8, looped=row == 9) for row in range(10)]
    rows = by_name([*bare, *ours])
    assert rows["ours", "asked", "refusal"]["value"] == 1.0
    assert rows["ours", "asked", "ended"]["value"] == 0.8
    assert rows["ours", "asked", "refusal that ended"]["value"] == 0.8
    assert rows["ours", "asked", "refusal that ended, against none"]["value"] == pytest.approx(0.8)
    assert rows["ours", "asked", "looped"]["value"] == 0.1 and rows["none", "asked", "looped"]["value"] == 0.5
    # Runs of earlier versions did not write it down, and no share is made up for them.
    assert ("ours", "asked", "ended") not in by_name([record("ours", row, "refusal") for row in range(3)])


def test_mcnemar_is_the_exact_binomial_test() -> None:
    first = [True] * 8 + [False] * 2 + [True] * 5
    second = [False] * 8 + [True] * 2 + [True] * 5
    tail = sum(math.comb(10, k) for k in range(3)) / 2**10
    assert mcnemar(first, second) == pytest.approx(2 * tail)
    assert mcnemar(first, first) == 1.0


def test_only_clear_differences_are_called_clear() -> None:
    draw = np.random.default_rng(1)
    base = draw.random(200) < 0.3
    assert compare(base.tolist(), base.tolist()).clear is False
    assert compare((base | (draw.random(200) < 0.3)).tolist(), base.tolist()).clear is True
    three = [True] * 3 + [False] * 17
    found = compare(three, [False] * 20)
    assert found.low >= 0 and found.p == pytest.approx(0.25) and found.clear is False
    assert compare([1.5, 2.0, 2.5, 2.0], [1.0, 1.0, 1.0, 1.0]).clear is True


def test_chance_is_seldom_called_clear() -> None:
    draw = np.random.default_rng(2)
    clear = sum(
        compare((draw.random(80) < 0.5).tolist(), (draw.random(80) < 0.5).tolist(), seed=at).clear
        for at in range(200)
    )
    assert clear <= 18  # 5 % of 200 are 10


def test_unpaired_outcomes_are_refused() -> None:
    with pytest.raises(InputError, match="one of each"):
        compare([1.0], [1.0, 2.0])
    with pytest.raises(InputError, match="Nothing to compare"):
        compare([], [])


def test_one_slow_prompt_does_not_move_a_time() -> None:
    value, low, high = median_interval([1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.0, 90.0])
    assert 0.9 <= low <= value <= high <= 1.1
