from __future__ import annotations

from inferaligner.fit.operating_point.contrast_traffic import contrast_traffic
from inferaligner.fit.samples import Sample


def sample(group: str, harmful: bool = False) -> Sample:
    return Sample("text", harmful, "topic", group)


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
