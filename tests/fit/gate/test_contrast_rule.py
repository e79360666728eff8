from __future__ import annotations

import numpy as np
import pytest

from inferaligner.errors import InputError
from inferaligner.fit.gate.contrast_rule import CONTRAST_RULE, contrast_threshold, contrast_traffic
from inferaligner.fit.samples import Sample

# In sixty ordinary prompts one may lie above at 5 % and 80 % confidence; in ten, none.
LIMIT, CONFIDENCE = 0.05, 0.8


def sample(group: str, harmful: bool = False) -> Sample:
    return Sample("text", harmful, "topic", group)


@pytest.fixture
def traffic() -> dict[str, list[float]]:
    """Zero is the plain quantile of the pool: five of its hundred scores lie above."""
    generator = np.random.default_rng(0)
    scores = np.sort(generator.normal(size=100))
    scores = generator.permutation(scores - scores[-6])
    kinds = {"contrast set: large": list(scores[:90]), "contrast set: small": list(scores[90:])}
    return {"contrast set": list(scores), **kinds}


def test_ordinary_traffic_pooled_and_by_kind() -> None:
    samples = [sample("pairs", True), sample("pairs"), sample("math"), sample("lookalike"), sample("coding")]
    assert contrast_traffic([1.0, 2.0, 3.0, 4.0, 5.0], samples) == {
        "contrast set": [3.0, 5.0],
        "contrast set: coding": [5.0],
        "contrast set: math": [3.0],
    }


def test_without_ordinary_prompts_all_harmless_ones_stand_for_them() -> None:
    samples = [sample("pairs", True), sample("pairs"), sample("pairs")]
    assert contrast_traffic([1.0, 2.0, 3.0], samples) == {"harmless prompts": [2.0, 3.0]}


def test_the_default_changes_nothing(traffic: dict[str, list[float]]) -> None:
    assert CONTRAST_RULE == "quantile"
    assert contrast_threshold(traffic, LIMIT, CONFIDENCE) == (0.0, {})
    assert contrast_threshold({}, LIMIT, CONFIDENCE, "promise") == (0.0, {})


def test_a_promise_is_stricter_and_for_the_pool(traffic: dict[str, list[float]]) -> None:
    threshold, ranks = contrast_threshold(traffic, LIMIT, CONFIDENCE, "promise")
    assert threshold > 0 and list(ranks) == ["contrast set"]
    assert sum(score > threshold for score in traffic["contrast set"]) == ranks["contrast set"].allowed < 5


def test_kinds_with_enough_prompts_are_bounded_apart(traffic: dict[str, list[float]]) -> None:
    # All that lies above is of one kind, which the pool hides.
    traffic["contrast set: large"].sort()
    for n in range(5):
        traffic["contrast set: large"][-1 - n] = 10.0 + n
    pooled, _ = contrast_threshold(traffic, LIMIT, CONFIDENCE, "promise")
    threshold, ranks = contrast_threshold(traffic, LIMIT, CONFIDENCE, "promise-per-kind")
    assert threshold > pooled
    assert set(ranks) == {"contrast set", "contrast set: large"}


def test_another_rule(traffic: dict[str, list[float]]) -> None:
    with pytest.raises(InputError, match="quantile, promise"):
        contrast_threshold(traffic, LIMIT, CONFIDENCE, "guess")  # type: ignore[arg-type]
