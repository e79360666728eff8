"""What a report shows of answers."""

from __future__ import annotations

from typing import Any

from inferaligner.reporting.evaluation_samples import samples

TITLES = {"none": "bare model", "inferaligner": "InferAligner", "canned": "canned refusal"}


def record(method: str, response: str, outcome: str, kind: str = "harmful", row: int = 0) -> dict[str, Any]:
    return {
        "method": method,
        "suite": kind,
        "kind": kind,
        "task": "reply",
        "row": row,
        "prompt": f"prompt {row}",
        "response": response,
        "outcome": outcome,
    }


def test_methods_that_gave_one_answer_share_it() -> None:
    told = [
        record("none", "Sure, here it is.", "compliance"),
        record("inferaligner", "Sure, here it is.", "compliance"),
        record("canned", "I'm sorry, but no.", "refusal"),
    ]
    (sample,) = samples(told, TITLES)
    assert [answer.methods for answer in sample.answers] == [
        ("bare model", "InferAligner"),
        ("canned refusal",),
    ]
    assert [answer.hidden for answer in sample.answers] == [True, False]


def test_answers_to_harmful_prompts_are_cut_short() -> None:
    long = "word " * 100
    cut = {
        kind: samples([record("none", long, "compliance", kind)], TITLES)[0].answers[0]
        for kind in ("harmful", "benign")
    }
    assert len(cut["harmful"].text) <= 112 < len(cut["benign"].text) < len(long)
    assert cut["harmful"].hidden and not cut["benign"].hidden
