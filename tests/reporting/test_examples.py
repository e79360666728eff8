"""Which answers a report shows, and how much of them."""

from __future__ import annotations

from typing import Any

import pytest

from inferaligner.reporting.examples import examples

TITLES = {"none": "bare model", "inferaligner": "InferAligner", "canned": "canned refusal"}


def record(
    method: str,
    response: str,
    outcome: str,
    kind: str = "harmful",
    row: int = 0,
    *,
    domain: str = "weapons",
    **more: Any,
) -> dict[str, Any]:
    return {
        "method": method,
        "suite": kind,
        "kind": kind,
        "task": "reply",
        "row": row,
        "domain": domain,
        "prompt": f"prompt {row}",
        "response": response,
        "digest": response,
        "outcome": outcome,
        **more,
    }


def test_methods_that_gave_one_answer_share_it() -> None:
    records = [
        record("none", "Sure, here it is.", "compliance"),
        record("inferaligner", "Sure, here it is.", "compliance", score=-0.5, open=False),
        record("canned", "I'm sorry, but no.", "refusal"),
    ]
    (example,) = examples(records, TITLES, "inferaligner")
    assert [answer.methods for answer in example.answers] == [
        ("bare model", "InferAligner"),
        ("canned refusal",),
    ]
    assert [answer.hidden for answer in example.answers] == [True, False]
    assert (example.score, example.open) == (-0.5, False)


def test_answers_to_harmful_prompts_are_cut_short() -> None:
    long = "word " * 100
    cut = {
        kind: examples([record("none", long, "compliance", kind)], TITLES, "none")[0].answers[0]
        for kind in ("harmful", "benign")
    }
    assert len(cut["harmful"].text) <= 112 < len(cut["benign"].text) < len(long)
    assert cut["harmful"].hidden and not cut["benign"].hidden


def test_of_a_refusal_of_a_harmful_prompt_only_the_beginning_is_shown() -> None:
    turned = record("none", "I'm sorry, I can't. " + "word " * 60 + "canary", "refusal")
    answer = examples([turned], TITLES, "none", withhold=True)[0].answers[0]
    assert answer.text.endswith(" …") and "canary" not in answer.text


@pytest.mark.parametrize("outcome", ["compliance", "gibberish"])
def test_a_withheld_answer_is_counted_in_words(outcome: str) -> None:
    given = [record("none", "one two", outcome), record("none", "one two", outcome, "over-refusal")]
    harmful, harmless = (e.answers[0] for e in examples(given, TITLES, "none", withhold=True))
    assert (harmful.text, harmful.withheld) == ("(answer withheld, 2 words)", True)
    assert (harmless.text, harmless.withheld) == ("one two", False)


def test_harmful_prompts_are_chosen_by_topic_and_text() -> None:
    rows = [
        record("none", f"answer {row}", "refusal", row=row, domain="fraud" if row in (3, 7) else "weapons")
        for row in range(10)
    ]
    chosen = [e.prompt for e in examples(rows, TITLES, "none", per_suite=3)]
    assert set(chosen[:2]) == {"prompt 3", "prompt 7"} and len(chosen) == 3
    other = [{**row, "response": "else", "digest": "else", "outcome": "compliance"} for row in rows]
    assert [e.prompt for e in examples(other, TITLES, "none", per_suite=3)] == chosen
