from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferaligner.calibration.operating_point import threshold_for
from inferaligner.errors import CalibrationError

SCORES = st.lists(st.floats(-100, 100), min_size=1, max_size=300)


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
    with pytest.raises(CalibrationError, match="between 0 and 1"):
        threshold_for({"a": [1.0]}, limit)


def test_without_benign_prompts_there_is_no_threshold() -> None:
    with pytest.raises(CalibrationError, match="--benign"):
        threshold_for({"a": []}, 0.01)
