from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferaligner.errors import CalibrationError, InferAlignerError, InputError
from inferaligner.fit.operating_point.threshold import (
    promised_threshold,
    rank_for,
    threshold_for,
    too_few,
)
from inferaligner.statistics.intervals import binomial_at_most

SCORES = st.lists(st.floats(-100, 100), min_size=1, max_size=300)


# -- the promise -------------------------------------------------------------------------------------------


@given(st.integers(1, 2000), st.sampled_from([0.005, 0.01, 0.05, 0.2]), st.sampled_from([0.8, 0.95, 0.99]))
@settings(deadline=None)
def test_the_rank_is_the_largest_that_keeps_the_promise(n: int, limit: float, confidence: float) -> None:
    rank = rank_for(n, limit, confidence)
    delta = 1.0 - confidence
    if rank.promised:
        assert (
            binomial_at_most(rank.allowed, n, limit) <= delta < binomial_at_most(rank.allowed + 1, n, limit)
        )
        assert rank.bound <= limit
    else:
        assert rank.allowed == 0
        assert rank.bound == pytest.approx(1.0 - delta ** (1.0 / n)) and rank.bound > limit
    assert binomial_at_most(rank.allowed, n, rank.bound) == pytest.approx(delta, rel=1e-6)


@given(st.lists(SCORES, min_size=1, max_size=3), st.floats(0.01, 0.3))
@settings(deadline=None)
def test_no_traffic_has_more_above_than_its_rank_allows(groups: list[list[float]], limit: float) -> None:
    named = {str(n): scores for n, scores in enumerate(groups)}
    threshold, ranks = promised_threshold(named, limit, 0.9)
    for name, scores in named.items():
        assert sum(score > threshold for score in scores) <= ranks[name].allowed
    assert threshold in [score for scores in groups for score in scores]


def test_the_false_open_rate_of_the_traffic_is_kept() -> None:
    """Scores are uniform, so the true rate above a threshold is known and not estimated."""
    generator = np.random.default_rng(0)
    kept = together = 0
    for _ in range(1000):
        one, other = generator.random(400), generator.random(700)
        threshold, _ = promised_threshold({"one": list(one)}, 0.02, 0.9)
        kept += 1.0 - threshold <= 0.02
        both, _ = promised_threshold({"one": list(one), "other": list(other)}, 0.02, 0.9)
        together += 1.0 - both <= 0.02
    assert kept >= 900 - 3 * math.sqrt(90)
    assert kept <= 970  # and no stricter than it has to be
    assert together >= kept


def test_ties_only_make_it_stricter() -> None:
    threshold, ranks = promised_threshold({"a": [0.0] * 980 + [1.0] * 20}, 0.02, 0.95)
    assert 0 < ranks["a"].allowed < 20 and threshold == 1.0


def test_a_small_traffic_is_bounded_by_its_largest_score_and_reported() -> None:
    threshold, ranks = promised_threshold({"a": [1.0, 3.0, 2.0]}, 0.01, 0.95)
    assert threshold == 3.0 and not ranks["a"].promised
    told = too_few("a", 3, 0.01, 0.95)
    assert told is not None
    for words in ("a: 3 prompts", "63.2 %", "299 prompts", "`max_false_open=0.632`"):
        assert words in told, told


def test_three_hundred_prompts_allow_one_per_cent() -> None:
    assert too_few("a", 300, 0.01, 0.95) is None
    assert rank_for(300, 0.01, 0.95).bound == pytest.approx(0.00993, abs=1e-5)
    assert too_few("a", 298, 0.01, 0.95) is not None


def test_no_advice_that_cannot_be_followed() -> None:
    told = too_few("a", 1, 0.01, 0.99999)
    assert told is not None and "max_false_open" not in told


@pytest.mark.parametrize(
    ("groups", "limit", "confidence", "words"),
    [
        ({}, 0.01, 0.95, "`benign`"),
        ({"a": [1.0], "b": []}, 0.01, 0.95, "'b'"),
        ({"a": [1.0, math.nan, math.inf]}, 0.01, 0.95, "2 of 3 scores of 'a'"),
        ({"a": [1.0]}, 0.0, 0.95, "`max_false_open` is 0"),
        ({"a": [1.0]}, math.nan, 0.95, "`max_false_open` is nan"),
        ({"a": [1.0]}, 0.01, 1.0, "`confidence` is 1"),
    ],
)
def test_what_makes_no_threshold(
    groups: dict[str, list[float]], limit: float, confidence: float, words: str
) -> None:
    with pytest.raises(InferAlignerError, match=words):
        promised_threshold(groups, limit, confidence)


# -- the plain quantile --------------------------------------------------------------------------------------


@given(SCORES, st.floats(0.001, 0.5))
def test_no_more_than_the_limit_lies_above(scores: list[float], limit: float) -> None:
    threshold = threshold_for({"a": scores}, limit)
    assert sum(score > threshold for score in scores) <= limit * len(scores) + 1e-6


@given(SCORES, SCORES)
def test_every_group_keeps_its_own_limit(first: list[float], second: list[float]) -> None:
    threshold = threshold_for({"first": first, "second": second}, 0.1)
    for group in (first, second):
        assert sum(score > threshold for score in group) <= 0.1 * len(group) + 1e-6


def test_the_limit_is_used_up() -> None:
    # 100 scores, 5 % allowed: exactly the five largest lie above.
    assert threshold_for({"a": list(range(100))}, 0.05) == 94


def test_a_small_group_is_bounded_by_its_largest_score() -> None:
    assert threshold_for({"a": [1.0, 3.0, 2.0]}, 0.01) == 3.0


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.1, 5.0])
def test_a_limit_that_is_no_share_is_refused(limit: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        threshold_for({"a": [1.0]}, limit)


def test_without_benign_prompts_there_is_no_threshold() -> None:
    with pytest.raises(CalibrationError, match="`benign`"):
        threshold_for({"a": []}, 0.01)
