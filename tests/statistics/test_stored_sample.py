"""Stored quantiles never claim more than the sample they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferaligner.errors import InputError
from inferaligner.statistics.stored_sample import LEVELS_IN_THOUSANDTHS, StoredSample, distance, kolmogorov_p

# Small integers tie often, as scores of repeated prompts do.
SCORES = st.lists(st.one_of(st.integers(-4, 4).map(float), st.floats(-50, 50)), min_size=1, max_size=400)


def exact_distance(one: list[float], other: list[float]) -> float:
    points = np.array(sorted({*one, *other}))
    shares = [np.searchsorted(np.sort(side), points, side="right") / len(side) for side in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


@given(SCORES, st.floats(-60, 60))
@settings(deadline=None)
def test_the_band_holds_the_sample(scores: list[float], threshold: float) -> None:
    stored = StoredSample.of(scores)
    for at in (threshold, scores[0], max(scores), min(scores)):
        low, high = stored.above(at)
        share = sum(score > at for score in scores) / len(scores)
        assert low - 1e-12 <= share <= high + 1e-12
        assert high - low <= 0.01 + 1e-12


@given(SCORES, SCORES)
@settings(deadline=None)
def test_the_distance_falls_short_by_a_step_at_most(then: list[float], now: list[float]) -> None:
    found, exact = distance([StoredSample.of(then)], now), exact_distance(then, now)
    assert found - 1e-9 <= exact <= found + 0.01 + 1e-9


@given(SCORES, SCORES, SCORES)
@settings(deadline=None)
def test_several_samples_are_pooled(one: list[float], other: list[float], now: list[float]) -> None:
    found = distance([StoredSample.of(one), StoredSample.of(other)], now)
    exact = exact_distance(one + other, now)
    assert found - 1e-9 <= exact <= found + 0.01 + 1e-9


@given(SCORES)
def test_a_sample_is_at_no_distance_from_itself(scores: list[float]) -> None:
    assert distance([StoredSample.of(scores)], scores) == pytest.approx(0.0, abs=1e-12)


def test_quantiles_are_values_of_the_sample() -> None:
    stored = StoredSample.of([float(n) for n in range(1000)])
    assert stored.n == 1000
    assert stored.quantiles[0] == 0.0 and stored.quantiles[-1] == 999.0
    assert stored.quantiles[LEVELS_IN_THOUSANDTHS.index(500)] == 499.0
    assert stored.quantiles[LEVELS_IN_THOUSANDTHS.index(997)] == 996.0


# Points of Kolmogorov's limit: Q(1.2239) = 0.10, Q(1.3581) = 0.05, Q(1.6276) = 0.01.
@pytest.mark.parametrize(("at", "p"), [(1.2239, 0.10), (1.3581, 0.05), (1.6276, 0.01)])
def test_p_values_of_large_samples(at: float, p: float) -> None:
    n = 4_000_000
    assert kolmogorov_p(at / (n / 2) ** 0.5, n, n) == pytest.approx(p, rel=2e-3)


def test_p_values_at_the_ends() -> None:
    assert kolmogorov_p(0.0, 10, 10) == 1.0
    assert kolmogorov_p(1.0, 1000, 1000) < 1e-100
    # No jump where the series is cut off.
    assert kolmogorov_p(0.2001 / 1000**0.5, 2000, 2000) == pytest.approx(1.0, abs=1e-9)


def test_false_alarms_are_no_more_frequent_than_told() -> None:
    generator = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        then, now = generator.normal(size=400), generator.normal(size=150)
        alarms += kolmogorov_p(distance([StoredSample.of(list(then))], list(now)), 400, 150) < 0.05
    assert alarms <= 24  # 5 % of 300 and three standard deviations, less what the band gives away


def test_a_shift_is_found() -> None:
    generator = np.random.default_rng(0)
    then, now = generator.normal(size=500), generator.normal(0.5, 1, size=300)
    assert kolmogorov_p(distance([StoredSample.of(list(then))], list(now)), 500, 300) < 1e-4


@pytest.mark.parametrize(
    "make",
    [
        lambda: StoredSample.of([]),
        lambda: StoredSample.of([1.0, float("nan")]),
        lambda: StoredSample(5, (1.0, 2.0)),
        lambda: StoredSample(0, (1.0,) * len(LEVELS_IN_THOUSANDTHS)),
        lambda: StoredSample(3, (2.0,) + (1.0,) * (len(LEVELS_IN_THOUSANDTHS) - 1)),
        lambda: StoredSample(3, (1.0,) * (len(LEVELS_IN_THOUSANDTHS) - 1) + (float("nan"),)),
    ],
)
def test_what_is_no_sample(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="expected"):
        make()
