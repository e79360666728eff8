"""What counts as saying the same thing."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferaligner.prompts.similarity import (
    content_words,
    near_duplicate_key,
    near_duplicates,
    stem,
)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("plan", "planning"),
        ("plan", "planned"),
        ("sell", "selling"),
        ("recipe", "recipes"),
        ("bake", "baking"),
        ("city", "cities"),
        ("bank", "banks"),
        ("hack", "hacker"),
        ("glass", "glasses"),
        ("quick", "quickly"),
    ],
)
def test_forms_of_one_word_share_a_stem(one: str, other: str) -> None:
    assert stem(one) == stem(other)


@pytest.mark.parametrize(("one", "other"), [("bus", "bu"), ("sing", "s"), ("virus", "vir"), ("bed", "b")])
def test_short_words_keep_their_bodies(one: str, other: str) -> None:
    assert stem(one) != stem(other)


def test_rewordings_are_near_duplicates() -> None:
    prompts = [
        "Write a guide on how to bake sourdough bread in a Dutch oven",
        "How do I repair a bicycle chain?",
        "Explain baking a sourdough bread in Dutch ovens, please",
    ]
    assert near_duplicates(prompts, ["Please explain how I can bake sourdough bread in a Dutch oven."]) == [
        0,
        2,
    ]
    assert near_duplicates(prompts, ["Write a guide on how to do it"]) == []
    assert near_duplicates(prompts, []) == []
    assert near_duplicates([], prompts) == []


def test_dress_accents_and_apostrophes_do_not_count() -> None:
    assert near_duplicate_key("What's a café?") == near_duplicate_key("Please describe the cafes")
    assert near_duplicate_key("Don’t panic") == near_duplicate_key("don't panic")


def test_unspaced_scripts_are_compared_by_pairs() -> None:
    assert near_duplicates(["如何烤面包呢"], ["如何烤面包"]) == [0]
    assert near_duplicates(["如何烤面包"], ["修理自行车链条"]) == []


def test_only_stop_words_still_compare() -> None:
    assert content_words("What is it?")
    assert near_duplicates(["What is it?"], ["what is it"]) == [0]
    assert near_duplicates([""], [""]) == []


@given(
    st.lists(st.text(alphabet="abcdefg ", max_size=30), max_size=8),
    st.lists(st.text(alphabet="abcdefg ", max_size=30), max_size=8),
    st.sampled_from([0.3, 0.6, 1.0]),
)
@settings(max_examples=80, deadline=None)
def test_the_index_agrees_with_comparing_all_pairs(a: list[str], b: list[str], threshold: float) -> None:
    def jaccard(one: frozenset[str], other: frozenset[str]) -> float:
        return len(one & other) / len(one | other) if one | other else 0.0

    slow = [
        i
        for i, text in enumerate(a)
        if any(jaccard(content_words(text), content_words(other)) >= threshold for other in b)
    ]
    assert near_duplicates(a, b, threshold) == slow
