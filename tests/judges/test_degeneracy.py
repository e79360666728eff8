"""Properties of the detection of broken language; the examples are in `test_rules.py`."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferaligner.judges.degeneracy import UNLIKELY, degeneracy, loops
from inferaligner.judges.function_words import FUNCTION_WORDS, NEVER_AFTER

PROSE = (
    "The old harbour lies in the east of the town. Ships from many countries unload coffee, cloth and "
    "timber there, and by evening the inns are full of sailors who tell each other about storms. My "
    "grandfather kept the light for thirty years. He wrote down every vessel that passed, with her "
    "colours and her course, and he could tell from the way the gulls flew whether rain would come. When "
    "the lamp was made electric, he went on climbing the stairs all the same, because somebody, he said, "
    "ought to look."
)


@given(st.text(max_size=300), st.none() | st.floats())
@settings(max_examples=300, deadline=None)
def test_any_text_is_accepted(answer: str, mean_logprob: float | None) -> None:
    reason = degeneracy(answer, mean_logprob=mean_logprob)
    assert reason is None or reason
    if not answer.strip():
        assert reason == "empty"


@pytest.mark.parametrize("seed", range(8))
def test_shuffled_prose_is_detected_by_the_rules_or_by_its_likelihood(seed: int) -> None:
    assert degeneracy(PROSE) is None
    words = PROSE.split()
    random.Random(seed).shuffle(words)
    assert degeneracy(" ".join(words), mean_logprob=UNLIKELY - 0.5) is not None


def test_most_shuffled_prose_is_detected_by_the_rules_alone() -> None:
    words = PROSE.lower().replace(".", "").replace(",", "").split()
    detected = 0
    for seed in range(40):
        random.Random(seed).shuffle(words)
        detected += degeneracy(" ".join(words)) is not None
    assert detected >= 30


@pytest.mark.parametrize("times", [4, 6, 20])
@pytest.mark.parametrize("unit", ["and then we went home ", "I am here to help you. ", "again again "])
def test_a_loop_is_detected_wherever_the_answer_is_cut(unit: str, times: int) -> None:
    looped = unit * (times * 3)
    for cut in range(0, 8):
        assert degeneracy(looped[: len(looped) - cut]) is not None
    assert degeneracy(PROSE + " " + looped * 2) is not None


def test_a_late_loop_is_detected_although_no_sentence_is_repeated_exactly() -> None:
    said = ["a lie", "a good one", "a lie but a lie", "any kind of thing", "a bad one", "a kind of lie"]
    late = " ".join(f"I'm not equipped to help with {thing}, not just {thing}." for thing in said * 2)
    assert not loops(PROSE) and degeneracy(PROSE) is None
    assert loops(PROSE + " " + late) and degeneracy(PROSE + " " + late) is not None


def test_refrains_and_short_texts_do_not_loop() -> None:
    assert not loops("No. " * 5)
    assert not loops(f"{PROSE} He told us that somebody ought to look, and somebody ought to look.")


def test_a_few_repeated_words_are_no_loop() -> None:
    assert degeneracy("It was very, very, very, very good. " + PROSE) is None
    assert degeneracy(PROSE.replace("full of sailors", "full, full, full, full of sailors")) is None


def test_links_and_long_rules_are_no_words() -> None:
    assert (
        degeneracy("See https://example.org/xkqzt/brmpfl?grwtsk=plzzrt#hjkkdvbnmrtwrtzsdlkjhgf for more.")
        is None
    )
    assert degeneracy("Title\n" + "=" * 80 + "\n" + PROSE + "\n" + "-" * 120) is None


def test_the_limit_itself_is_likely_enough() -> None:
    assert degeneracy(PROSE, mean_logprob=UNLIKELY) is None
    assert degeneracy(PROSE, mean_logprob=UNLIKELY - 1e-6) == "unlikely"
    assert degeneracy(PROSE, mean_logprob=float("-inf")) == "unlikely"


def test_every_language_has_function_words() -> None:
    assert {"the", "und", "que", "że", "hogy", "että", "için", "yang", "của", "kwa", "ang"} <= FUNCTION_WORDS
    assert "of" in NEVER_AFTER["the"]
    assert "can" not in NEVER_AFTER["the"]


@pytest.mark.parametrize(
    "answer",
    [
        "On question, I can offer help, but not want, on, how, or why, or how, or how, or how, or how, or",
        "I can offer up help, but not, want, want, help, can, help, need, help, can, help, need,",
        "on questions, how can I howitch, how, how,",
        "at tracks,\u00a0out\u00a0on\u00a0paths",
    ],
)
def test_a_refusal_broken_by_a_strong_vector_is_detected(answer: str) -> None:
    assert degeneracy(answer) is not None


@pytest.mark.parametrize(
    "answer",
    [
        "on Monday",
        "in Paris, where it rains. It is worth a visit.",
        "Eggs, milk, flour, sugar, butter, salt, and more sugar.",
        "Breathe in, hold, breathe out, and rest. Then breathe in, hold, and breathe out once more.",
    ],
)
def test_short_answers_and_lists_are_no_stammer(answer: str) -> None:
    assert degeneracy(answer) is None


@pytest.mark.parametrize(
    "answer",
    ["1" + "0" * 39, "1. 1." + "1." * 17, "1. " * 15, "The answer: " + "7, " * 20, "123456789" + "0" * 30],
)
def test_nothing_but_the_same_numbers(answer: str) -> None:
    assert degeneracy(answer) == "loop"


@pytest.mark.parametrize(
    "answer",
    [
        "1000000",
        "0, 0, 0, 0, 0, 0, 0, 0, 0, 0",
        "1 0 0\n0 1 0\n0 0 1",
        "1/3 = 0.333333333333333333",
        "Breadbasket ........................ 12 euros 50",
    ],
)
def test_numbers_that_are_an_answer(answer: str) -> None:
    assert degeneracy(answer) is None
