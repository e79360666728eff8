"""Of a sibling: vectors learned from its answers, or its own where those fall short."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inferaligner.errors import CalibrationError
from inferaligner.fit.strength.steering_choice import _better_of, _Candidate
from inferaligner.fit.strength.trial import Search, Trial


def candidate(refusal: float, *, learned: bool) -> _Candidate:
    trial = Trial((2,), 1.0, 0.5, refusal=refusal, gibberish=0.0, unended=1 - refusal)
    search = Search(trial, 1.0, (trial,), 16, 32, 1)
    return _Candidate(search, torch.ones(4, 8), {"layers": [2]}) if learned else _Candidate(search)


def choose(learned: float | None, own: float) -> tuple[_Candidate, list[str], bool]:
    """The choice, the notes, and whether the own vectors were tried."""
    notes: list[str] = []
    tried: list[bool] = []

    def learn() -> _Candidate:
        if learned is None:
            raise CalibrationError("Too few refusals.")
        return candidate(learned, learned=True)

    def take() -> _Candidate:
        tried.append(True)
        return candidate(own, learned=False)

    context: Any = SimpleNamespace(progress=SimpleNamespace(note=notes.append))
    return _better_of(context, learn, take), notes, bool(tried)


def test_own_vectors_are_not_tried_where_nothing_is_left_to_gain() -> None:
    taken, notes, tried = choose(0.95, 1.0)
    assert taken.learned is not None and not tried and notes == []


@pytest.mark.parametrize(
    ("learned", "own", "keeps_learned"), [(0.8, 0.5, True), (0.8, 0.82, True), (0.6, 0.9, False)]
)
def test_the_better_of_both_is_taken(learned: float, own: float, keeps_learned: bool) -> None:
    taken, notes, tried = choose(learned, own)
    assert tried and (taken.learned is not None) == keeps_learned
    assert f"{learned:.0%} fluent refusals" in notes[0] and f"{own:.0%} fluent refusals" in notes[0]
    if keeps_learned:
        assert taken.figures["own_vectors"]["refusal"] == own


def test_a_guide_whose_answers_teach_nothing_guides_by_its_own_vectors() -> None:
    taken, notes, tried = choose(None, 0.7)
    assert tried and taken.learned is None and "Too few refusals" in notes[0]
