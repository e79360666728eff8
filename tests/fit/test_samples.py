from __future__ import annotations

import pytest

from inferaligner.errors import CalibrationError, InputError
from inferaligner.fit.samples import (
    MOST_PER_KIND,
    SHARES,
    WRAPPED_SHARE,
    Sample,
    importance,
    samples_from_contrast,
    samples_from_lists,
)
from inferaligner.prompts.contrast import load_contrast_set


@pytest.fixture(scope="module")
def shipped():  # type: ignore[no-untyped-def]
    return samples_from_contrast(load_contrast_set())


def test_nothing_of_the_test_part_is_fitted_on(shipped) -> None:  # type: ignore[no-untyped-def]
    assert not {s.content for s in shipped.fitting} & {s.content for s in shipped.test}


def test_twins_share_a_fold(shipped) -> None:  # type: ignore[no-untyped-def]
    plain = [s for s in shipped.fitting if s.group == "pairs" and not s.wrapped]
    harmful, harmless = [s for s in plain if s.harmful], [s for s in plain if not s.harmful]
    assert len(harmful) == len(harmless) > 400
    for one, other in zip(harmful, harmless, strict=True):
        assert one.content == other.content and one.fold(5) == other.fold(5)


def test_vectors_come_from_harmful_prompts_against_twins_and_ordinary_ones(shipped) -> None:  # type: ignore[no-untyped-def]
    harmful, harmless = ([shipped.fitting[row] for row in rows] for rows in shipped.for_vectors())
    assert all(s.harmful for s in harmful) and not any(s.harmful for s in harmless)
    assert len(harmful) == MOST_PER_KIND
    assert sum(s.group == "pairs" for s in harmless) == sum(s.ordinary for s in harmless) == MOST_PER_KIND
    assert not any(s.wrapped for s in [*harmful, *harmless])


def test_only_ordinary_prompts_count_as_traffic(shipped) -> None:  # type: ignore[no-untyped-def]
    ordinary = [s for s in shipped.fitting if s.ordinary]
    assert not any(s.attack for s in ordinary)
    assert {s.group for s in ordinary} == {"everyday", "coding", "medical", "financial", "math"}
    assert not any(s.harmful for s in ordinary)


def test_each_sort_of_harmless_prompt_counts_its_share(shipped) -> None:  # type: ignore[no-untyped-def]
    harmless = [s for s in shipped.fitting if not s.harmful]
    counts = importance(harmless)
    assert sum(counts) == pytest.approx(len(harmless))
    for sort, share in SHARES.items():
        held = sum(count for sample, count in zip(harmless, counts, strict=True) if sample.sort == sort)
        assert held / len(harmless) == pytest.approx(share)


def test_prompts_of_one_sort_count_alike() -> None:
    samples = [Sample(f"p{n}", False, f"t{n}", "pairs") for n in range(5)]
    assert importance(samples) == [1.0] * 5


def test_wrapped_prompts_count_their_share_on_both_sides(shipped) -> None:  # type: ignore[no-untyped-def]
    counts = importance(shipped.fitting)
    for sort in ("harmful", *SHARES):
        rows = [(s, c) for s, c in zip(shipped.fitting, counts, strict=True) if s.sort == sort]
        wrapped = sum(count for sample, count in rows if sample.wrapped)
        assert wrapped / sum(count for _, count in rows) == pytest.approx(WRAPPED_SHARE)
    harmful = [c for s, c in zip(shipped.fitting, counts, strict=True) if s.harmful]
    assert sum(harmful) == pytest.approx(len(harmful))


def test_wrapped_prompts_stand_on_both_sides(shipped) -> None:  # type: ignore[no-untyped-def]
    wrapped = [s for s in shipped.fitting if s.wrapped]
    assert sum(s.harmful for s in wrapped) > 100
    assert sum(not s.harmful for s in wrapped) > 100


def test_user_lists_are_split_by_content() -> None:
    harmful, harmless = [f"bad {n}" for n in range(60)], [f"good {n}" for n in range(60)]
    samples = samples_from_lists(harmful, harmless, ("a", "b"))
    assert len(samples.fitting) + len(samples.test) == 120
    assert not {s.text for s in samples.fitting} & {s.text for s in samples.test}
    assert samples.described["source"] == "a against b"


def test_too_few_prompts_are_refused() -> None:
    with pytest.raises(CalibrationError, match="harmless"):
        samples_from_lists([f"bad {n}" for n in range(20)], ["good"] * 20, ("a", "b"))


def test_a_prompt_on_both_sides_is_refused() -> None:
    same = [f"prompt {n}" for n in range(20)]
    with pytest.raises(InputError, match="both the harmful and the harmless"):
        samples_from_lists(same, same, ("a", "b"))
