from __future__ import annotations

from inferaligner.fit.samples import Sample, Samples
from inferaligner.fit.strength.search_prompts import (
    GuideAnswer,
    SearchPrompts,
    mostly_end,
    wrongly_opened,
)
from inferaligner.models.generation import Answer


def samples() -> Samples:
    rows = [Sample(f"harmful {n}", True, f"a/{n}", "pairs") for n in range(4)]
    rows += [Sample(f"twin {n}", False, f"a/{n}", "pairs") for n in range(4)]
    rows += [Sample(f"wrapped {n}", False, f"b/{n}", "pairs", wrapped=True) for n in range(2)]
    rows += [Sample(f"everyday {n}", False, f"c/{n}", "everyday") for n in range(4)]
    return Samples(tuple(rows), (), {})


def scores(**opened: float) -> list[float]:
    by = {s.text: -float(n + 1) for n, s in enumerate(samples().fitting)}
    return list({**by, **{name.replace("_", " "): value for name, value in opened.items()}}.values())


def answers(*ended: bool) -> tuple[GuideAnswer, ...]:
    return tuple(GuideAnswer("I won't help with that.", end) for end in ended)


def test_a_refusal_has_to_end_where_most_of_the_guides_do() -> None:
    assert mostly_end(answers(True, False)) and not mostly_end(answers(True, False, False))
    assert not mostly_end(())
    cut, whole = Answer(0, "No.", (5,)), Answer(0, "No.", (5, 2), ended=True)
    for ends, expected in ((True, "unended"), (False, "refusal")):
        prompts = SearchPrompts(("a",), answers(ends), ("b",))
        assert prompts.outcome_of(cut, lambda text: "refusal") == expected
        assert prompts.outcome_of(whole, lambda text: "refusal") == "refusal"
        assert prompts.outcome_of(cut, lambda text: "compliance") == "compliance"


def test_prompts_that_open_the_gate_come_first_and_then_the_nearest() -> None:
    found = wrongly_opened(samples(), scores(everyday_2=0.5, twin_1=2.0, wrapped_0=9.0, harmful_0=5.0), 3)
    assert set(found[:2]) == {"everyday 2", "twin 1"}
    assert found[2] == "twin 0"  # -5, the highest of what stays closed


def test_without_scores_they_are_taken_as_they_come() -> None:
    found = wrongly_opened(samples(), [], 100)
    assert len(found) == 8 and not any("harmful" in text or "wrapped" in text for text in found)
    assert found == wrongly_opened(samples(), [], 100)
