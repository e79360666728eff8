from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inferaligner.errors import CalibrationError
from inferaligner.fit.operating_point.benign_traffic import raise_threshold, settle, unseen
from inferaligner.method.gate import GateRead, GuidanceGate

GATE = GuidanceGate("test", (GateRead(0),), torch.ones(1, 2), 0.5)
HUNDRED = [n / 50 - 1.0 for n in range(100)]  # -1 to 0.98


def test_traffic_of_the_users_raises_the_threshold() -> None:
    gate, point, own = settle(GATE, {}, {"mine": HUNDRED}, max_false_open=0.05, confidence=0.9)
    record = point.traffic["mine"]
    assert gate.bias < GATE.bias
    assert point.promised and record.origin == "held-out" and record.open == 1
    assert sum(score > 0 for score in own["mine"]) == 1
    assert own["mine"][0] - HUNDRED[0] == pytest.approx(gate.bias - GATE.bias)
    assert record.quantiles[-1] + gate.bias == pytest.approx(own["mine"][-1])


def test_it_never_lowers_what_the_labelled_prompts_ask_for() -> None:
    low = [score - 50 for score in HUNDRED]
    gate, point, own = settle(GATE, {}, {"mine": low}, max_false_open=0.05, confidence=0.9)
    assert gate.bias == GATE.bias and own["mine"] == low
    assert point.traffic["mine"].open == 0 and point.promised


def test_the_largest_threshold_of_several_traffics_is_taken() -> None:
    high = [score + 3 for score in HUNDRED]
    both, point, _ = settle(GATE, {}, {"a": HUNDRED, "b": high}, max_false_open=0.05, confidence=0.9)
    alone, _, _ = settle(GATE, {}, {"b": high}, max_false_open=0.05, confidence=0.9)
    assert both.bias == alone.bias
    assert {name: record.open for name, record in point.traffic.items()} == {"a": 0, "b": 1}
    assert all(record.promised for record in point.traffic.values())


def test_too_few_prompts_make_no_promise() -> None:
    gate, point, _ = settle(GATE, {}, {"mine": [0.3, 0.9]}, max_false_open=0.05, confidence=0.9)
    record = point.traffic["mine"]
    assert not record.promised and record.open == 0 and gate.bias < -0.4
    assert record.bound == pytest.approx(1 - math.sqrt(0.1))


def test_the_papers_bias_stays() -> None:
    gate, point, own = settle(GATE, {}, {"mine": HUNDRED}, max_false_open=0.05, confidence=0.9, paper=True)
    assert gate == GATE and point.rule == "paper" and own["mine"] == HUNDRED
    # 49 of 100 open: a bound, from the count, and nothing to promise.
    assert point.traffic["mine"].open == 49 and 0.49 < point.traffic["mine"].bound < 0.6
    assert not point.promised
    # A threshold that knows nothing of the traffic may be told to keep the promise by the count alone.
    low = [score - 5 for score in HUNDRED]
    assert settle(GATE, {}, {"mine": low}, max_false_open=0.05, confidence=0.9, paper=True)[1].promised


def test_out_of_fold_scores_are_described_and_not_promised() -> None:
    gate, point, _ = settle(GATE, {"contrast set": HUNDRED}, {}, max_false_open=0.9, confidence=0.9)
    assert gate == GATE and not point.held_out and not point.promised
    assert point.traffic["contrast set"].open == 49 and not point.traffic["contrast set"].promised
    assert point.rule == "quantile"


@given(
    st.floats(-200, 200),
    st.lists(st.floats(-300, 300, width=32), min_size=1, max_size=30),
)
@settings(deadline=None)
def test_the_score_at_the_threshold_stays_closed_in_float32(bias: float, projections: list[float]) -> None:
    gate = GuidanceGate("test", (GateRead(0),), torch.ones(1, 1), bias)
    activations = torch.tensor(projections).reshape(-1, 1, 1, 1)
    scores = gate.scores(activations, (0,), (0,))
    moved = raise_threshold(gate, float(scores.max()))
    assert not any(decision.open for decision in moved.decide(moved.scores(activations, (0,), (0,))))


def test_prompts_that_a_gate_has_seen_are_left_out() -> None:
    kept, left_out = unseen({"mine": ["a", "b", "c"], "none": []}, ["b", "z"])
    assert kept == {"mine": ["a", "c"], "none": []} and left_out == {"mine": 1, "none": 0}
    with pytest.raises(CalibrationError, match="every one of the 2 prompts of 'mine'"):
        unseen({"mine": ["a", "b"]}, ["a", "b"])
