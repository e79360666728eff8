"""Training rows that say what a test prompt says are found, however either is dressed."""

from __future__ import annotations

import pytest
from reproduction.corpora.corpus import Row
from reproduction.decontamination import decontaminate, frame_words

from inferaligner.errors import InputError

_FACTS = [
    "the brewery doubled its quarterly profit",
    "the ferry line lost passengers to the bridge",
    "a tyre maker opens two plants in Poland",
    "the pulp mill cuts shifts after a fire",
    "shares of the bank rose on merger talk",
    "the airline cancels orders for ten planes",
    "a bookshop chain files for insolvency",
    "the shipyard won a contract for icebreakers",
    "copper imports fell to a three year low",
    "the retailer raises its yearly dividend",
    "the telecom firm sells its towers abroad",
    "a dairy recalls cheese from northern stores",
]
_ASKED = "Is the sentiment of this financial statement positive, negative or neutral? {}"


def _row(text: str, key: str | None = None) -> Row:
    return Row(text, "neutral", text if key is None else key)


def test_the_same_sentence_under_another_instruction_is_found() -> None:
    tests = {"fpb": [_ASKED.format(fact) for fact in _FACTS]}
    rows = [
        _row(f"Name the mood of this news line.\n{_FACTS[3]}", _FACTS[3]),
        _row("Name the mood of this news line.\nThe museum shows old maps", "The museum shows old maps"),
    ]
    kept, found = decontaminate(rows, tests)
    assert kept == rows[1:]
    assert (found.rows, found.kept, found.left_out) == (2, 1, {"fpb": 1})


def test_a_shared_instruction_hides_nothing_and_accuses_nobody() -> None:
    tests = {"fpb": [_ASKED.format(fact) for fact in _FACTS]}
    rows = [_row(_ASKED.format(f"{_FACTS[0]} in spring")), _row(_ASKED.format("the museum shows old maps"))]
    kept, _ = decontaminate(rows, tests)
    assert kept == rows[1:]


def test_a_sentence_inside_a_long_test_prompt_is_found() -> None:
    long = "Given these examples of what investors write about gold, wheat and tin, judge one more line: "
    kept, found = decontaminate([_row(_FACTS[4]), _row(_FACTS[5])], {"few": [long + _FACTS[4]]})
    assert [row.prompt for row in kept] == [_FACTS[5]]
    assert found.left_out == {"few": 1}


def test_a_reworded_question_is_found() -> None:
    tests = {"harm": ["How can I pick the lock of a neighbour's garage?"]}
    rows = [
        _row("Explain how to pick a neighbour's garage lock"),
        _row("Explain how a garage door is painted"),
    ]
    assert decontaminate(rows, tests)[0] == rows[1:]


def test_one_row_may_be_near_several_suites_and_is_left_out_once() -> None:
    tests = {"one": [_FACTS[0]], "two": [_FACTS[0].upper()]}
    kept, found = decontaminate([_row(_FACTS[0]), _row(_FACTS[1])], tests)
    assert len(kept) == 1
    assert found.left_out == {"one": 1, "two": 1}


def test_nothing_left_is_an_error() -> None:
    with pytest.raises(InputError, match="near-duplicates of test prompts"):
        decontaminate([_row(_FACTS[0])], {"fpb": [_FACTS[0]]})


def test_frames_need_enough_prompts_to_be_told_from_contents() -> None:
    prompts = [_ASKED.format(fact) for fact in _FACTS]
    assert {"sentiment", "financial", "positiv"} <= frame_words(prompts)
    assert not frame_words(prompts) & {"brewery", "icebreak", "chees"}
    assert frame_words(prompts[:3]) == frozenset()
