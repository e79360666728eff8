"""Known values, the guarantees in simulation, and the errors."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferaligner.errors import InputError
from inferaligner.statistics.intervals import (
    auroc,
    binomial_at_most,
    bootstrap_auroc,
    clopper_pearson,
    order_statistic_index,
    smallest_sample,
    upper_bound,
)


def exact_at_most(k: int, n: int, p: Fraction) -> Fraction:
    return sum((math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(k + 1)), Fraction(0))


@given(st.integers(1, 60), st.data())
@settings(max_examples=60, deadline=None)
def test_the_tail_agrees_with_exact_fractions(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    p = Fraction(data.draw(st.integers(1, 999)), 1000)
    below = exact_at_most(k, n, p)
    assert binomial_at_most(k, n, float(p)) == pytest.approx(float(below), rel=1e-10, abs=1e-300)


def test_far_tails_keep_their_digits() -> None:
    assert binomial_at_most(0, 1000, 0.5) == pytest.approx(2.0**-1000, rel=1e-9)
    assert binomial_at_most(50_000, 100_000, 0.5) == pytest.approx(0.5, abs=0.002)
    assert binomial_at_most(-1, 10, 0.5) == 0.0
    assert binomial_at_most(10, 10, 0.5) == 1.0
    assert (binomial_at_most(3, 10, 0.0), binomial_at_most(3, 10, 1.0)) == (1.0, 0.0)


# Standard tables (they agree with R's binom.test).
@pytest.mark.parametrize(
    ("k", "n", "confidence", "low", "high"),
    [
        (0, 10, 0.95, 0.0, 0.3084971),
        (10, 10, 0.95, 0.6915029, 1.0),
        (5, 10, 0.95, 0.1870860, 0.8129140),
        (1, 20, 0.95, 0.0012651, 0.2487328),
        (0, 100, 0.95, 0.0, 0.0362167),
        (7, 10, 0.90, 0.3933758, 0.9127356),
    ],
)
def test_clopper_pearson_known_values(k: int, n: int, confidence: float, low: float, high: float) -> None:
    interval = clopper_pearson(k, n, confidence)
    assert (interval.value, interval.n) == (k / n, n)
    assert interval.low == pytest.approx(low, abs=1e-6)
    assert interval.high == pytest.approx(high, abs=1e-6)


@given(st.integers(1, 400), st.data())
@settings(max_examples=40, deadline=None)
def test_clopper_pearson_bounds_leave_half_the_error_on_each_side(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    interval = clopper_pearson(k, n, 0.9)
    assert 0.0 <= interval.low <= interval.value <= interval.high <= 1.0
    if k > 0:
        assert binomial_at_most(k - 1, n, interval.low) == pytest.approx(0.95, rel=1e-7)
    if k < n:
        assert binomial_at_most(k, n, interval.high) == pytest.approx(0.05, rel=1e-6)


@given(st.integers(1, 2000), st.data())
@settings(max_examples=40, deadline=None)
def test_the_upper_bound_is_the_rate_the_count_just_contradicts(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n - 1))
    bound = upper_bound(k, n, 0.95)
    assert binomial_at_most(k, n, bound) == pytest.approx(0.05, rel=1e-6)
    assert bound == pytest.approx(clopper_pearson(k, n, 0.9).high)


def test_upper_bounds_at_the_ends() -> None:
    assert upper_bound(0, 300) == pytest.approx(1 - 0.05 ** (1 / 300))
    assert upper_bound(7, 7) == upper_bound(0, 0) == 1.0


def test_no_observations_is_no_knowledge() -> None:
    nothing = clopper_pearson(0, 0)
    assert math.isnan(nothing.value)
    assert (nothing.low, nothing.high, nothing.n) == (0.0, 1.0, 0)


def pairwise(scores: list[float], labels: list[bool]) -> float:
    ups = [s for s, y in zip(scores, labels, strict=True) if y]
    downs = [s for s, y in zip(scores, labels, strict=True) if not y]
    return sum((u > d) + 0.5 * (u == d) for u in ups for d in downs) / (len(ups) * len(downs))


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
@settings(deadline=None)
def test_auroc_is_the_share_of_ordered_pairs(rows: list[tuple[int, bool]]) -> None:
    scores, labels = [float(s) for s, _ in rows], [y for _, y in rows]
    if len(set(labels)) == 1:
        with pytest.raises(InputError, match="at least one of each"):
            auroc(scores, labels)
        return
    assert auroc(scores, labels) == pytest.approx(pairwise(scores, labels))
    assert auroc([-s for s in scores], labels) == pytest.approx(1.0 - auroc(scores, labels))


def test_auroc_known_values() -> None:
    assert auroc([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]) == pytest.approx(0.75)
    assert auroc([1.0, 1.0], [0, 1]) == 0.5
    assert auroc(np.array([float("-inf"), float("inf")]), np.array([False, True])) == 1.0


def test_bootstrap_is_seeded_and_covers_its_value() -> None:
    generator = np.random.default_rng(1)
    scores = np.concatenate([generator.normal(1, 1, 80), generator.normal(0, 1, 120)])
    labels = np.array([1] * 80 + [0] * 120)
    interval = bootstrap_auroc(scores, labels, draws=500)
    assert interval == bootstrap_auroc(scores, labels, draws=500)
    assert interval != bootstrap_auroc(scores, labels, draws=500, seed=7)
    assert interval.low < interval.value < interval.high
    assert interval.n == 200
    # Hanley and McNeil's standard error for these sizes is about 0.036.
    assert 0.09 < interval.high - interval.low < 0.20


def test_perfect_separation_is_not_certainty() -> None:
    few = bootstrap_auroc([1, 2, 3, 11, 12, 13], [0, 0, 0, 1, 1, 1])
    many = bootstrap_auroc([0.0] * 300 + [1.0] * 300, [0] * 300 + [1] * 300)
    assert (few.value, few.high) == (1.0, 1.0)
    assert few.low == pytest.approx(0.025 ** (1 / 3))
    assert many.low > 0.98
    assert bootstrap_auroc([1, 0], [0, 1]).low == 0.0


def test_order_statistic_known_values() -> None:
    assert smallest_sample(0.05, 0.05) == 59
    assert smallest_sample(0.01, 0.05) == 299
    assert smallest_sample(0.5, 0.5) == 1
    assert order_statistic_index(58, 0.05, 0.05) is None
    assert order_statistic_index(59, 0.05, 0.05) == 0
    assert order_statistic_index(92, 0.05, 0.05) == 0
    assert order_statistic_index(93, 0.05, 0.05) == 1  # Wilks: 93 for the second largest
    assert order_statistic_index(0, 0.05, 0.05) is None


@given(st.integers(1, 3000), st.sampled_from([0.001, 0.01, 0.05, 0.2]), st.sampled_from([0.01, 0.05, 0.3]))
@settings(max_examples=80, deadline=None)
def test_order_statistic_is_the_largest_that_keeps_the_promise(n: int, epsilon: float, delta: float) -> None:
    r = order_statistic_index(n, epsilon, delta)
    if r is None:
        assert n < smallest_sample(epsilon, delta)
        return
    assert n >= smallest_sample(epsilon, delta)
    assert binomial_at_most(r, n, epsilon) <= delta < binomial_at_most(r + 1, n, epsilon)


def test_order_statistic_keeps_its_promise_in_simulation() -> None:
    n, epsilon, delta = 400, 0.02, 0.1
    r = order_statistic_index(n, epsilon, delta)
    assert r is not None
    uniform = np.sort(np.random.default_rng(0).random((4000, n)), axis=1)
    false_open = 1.0 - uniform[:, n - 1 - r]  # the true rate above the (r + 1)-th largest
    kept = np.mean(false_open <= epsilon)
    assert kept >= 1 - delta - 0.015
    one_more = 1.0 - uniform[:, n - 2 - r]
    assert np.mean(one_more <= epsilon) < 1 - delta


@pytest.mark.parametrize(
    "call",
    [
        lambda: clopper_pearson(3, 2),
        lambda: clopper_pearson(-1, 2),
        lambda: clopper_pearson(1, 2, 1.0),
        lambda: upper_bound(3, 2),
        lambda: upper_bound(1, 2, 0.0),
        lambda: auroc([1.0, 2.0], [1]),
        lambda: auroc([1.0, float("nan")], [0, 1]),
        lambda: auroc([1.0, 2.0], [0, 2]),
        lambda: bootstrap_auroc([1.0, 2.0], [0, 1], draws=0),
        lambda: order_statistic_index(10, 0.0, 0.1),
        lambda: order_statistic_index(-1, 0.1, 0.1),
        lambda: smallest_sample(0.1, 1.0),
    ],
)
def test_unusable_arguments_are_input_errors(call: object) -> None:
    assert callable(call)
    with pytest.raises(InputError, match=r"expected|marks"):
        call()
