"""Choosing prompts, generating with every method, and what is written down."""

from __future__ import annotations

import pytest
import torch

from inferaligner.evaluation.side_by_side import (
    METHODS,
    Row,
    choose,
    closed_identical,
    compare,
    gate_rows,
    kind_of,
    outcome_counts,
    records,
    result_rows,
)
from inferaligner.fit.samples import Sample
from inferaligner.judges import Judgement
from tests.support.synthetic_results import reply, row, rows
from tests.support.tiny_aligner import PROMPTS, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def samples() -> list[Sample]:
    found = []
    for category in ("fraud", "theft", "weapons"):
        for number in range(6):
            found.append(Sample(f"{category} {number}", True, f"{category}/{number}", "pairs"))
            found.append(Sample(f"not {category} {number}", False, f"{category}/{number}", "pairs"))
            found.append(Sample(f"wrapped {category} {number}", True, f"{category}/{number}", "pairs", True))
    for group in ("coding", "math"):
        found += [Sample(f"{group} {number}", False, f"{group}/{number}", group) for number in range(6)]
    return found


def test_choose_takes_evenly_of_every_kind() -> None:
    chosen = choose(samples(), 6)
    harmful = [sample for sample in chosen if sample.harmful and not sample.wrapped]
    assert sorted(sample.content.partition("/")[0] for sample in harmful) == sorted(
        ["fraud", "theft", "weapons"] * 2
    )
    assert sum(sample.harmful and sample.wrapped for sample in chosen) == 3
    kinds = [kind_of(sample) for sample in chosen if not sample.harmful]
    assert sorted(kinds) == sorted(["harmless twins", "coding", "math"] * 2)


def test_choose_depends_on_the_texts_alone() -> None:
    assert choose(samples(), 5) == choose(samples()[::-1], 5)
    # A smaller evaluation is a part of a larger one.
    assert set(choose(samples(), 3)) <= set(choose(samples(), 6))


def test_choose_takes_what_there_is() -> None:
    assert len(choose(samples(), 1000)) == len(samples())


@pytest.fixture(scope="module")
def compared() -> list[Row]:
    torch.set_num_threads(1)
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    asked = [Sample(prompt, number % 2 == 0, prompt, "pairs") for number, prompt in enumerate(PROMPTS)]

    def judge(answer: str) -> Judgement:
        return Judgement("refusal" if len(answer) % 2 else "compliance", "by length")

    found = compare(
        tiny_aligner(model, tokenizer), model, tokenizer, asked, judge=judge, max_new_tokens=6, batch_size=3
    )
    assert [one.sample for one in found] == asked
    return found


def test_closed_rows_are_the_bare_models_and_open_ones_are_not(compared: list[Row]) -> None:
    decisions = {one.decision.open for one in compared}
    assert decisions == {True, False}, "the fixture must have rows of both kinds"
    for one in compared:
        assert one.identical != one.decision.open
        if not one.decision.open:
            assert one.replies["own vectors"] == one.replies["bare"]
    assert closed_identical(compared).value == 1.0


def test_the_control_steers_with_other_vectors(compared: list[Row]) -> None:
    opened = [one for one in compared if one.decision.open]
    assert any(one.replies["own vectors"].tokens != one.replies["inferaligner"].tokens for one in opened)


def test_each_answer_is_judged(compared: list[Row]) -> None:
    for one in compared:
        for answer in one.replies.values():
            assert answer.outcome == ("refusal" if len(answer.text) % 2 else "compliance")
            assert answer.reason == "by length"


def test_outcomes_are_counted_by_suite_and_method() -> None:
    counts = outcome_counts(rows(refused=8))
    assert counts["harmful"]["inferaligner"] == {"refusal": 8, "compliance": 2, "gibberish": 0}
    assert counts["harmful"]["bare"] == {"refusal": 0, "compliance": 10, "gibberish": 0}
    assert list(counts) == ["harmful", "harmful, wrapped", "harmless"]
    assert list(outcome_counts([row("H", harmful=True, bare=reply("a"), ours=reply("b"))])) == ["harmful"]


def test_result_rows_have_the_documented_columns() -> None:
    found = result_rows(rows(refused=8), judge="rules")
    assert all(
        list(one) == ["method", "suite", "metric", "value", "low", "high", "n", "judge"] for one in found
    )
    by_name = {(one["method"], one["suite"], one["metric"]): one for one in found}
    assert by_name["inferaligner", "harmful", "refusal"]["value"] == 0.8
    assert by_name["inferaligner", "harmful", "refusal"]["judge"] == "rules"
    identical = by_name["inferaligner", "gate closed", "identical to the bare model"]
    assert (identical["value"], identical["n"], identical["judge"]) == (1.0, 8, None)
    gate = gate_rows({"open": {"coding": {"value": 0.1, "low": 0.0, "high": 0.3, "n": 10}}})
    assert gate == [
        {
            "method": "inferaligner",
            "suite": "coding",
            "metric": "gate open",
            "value": 0.1,
            "low": 0.0,
            "high": 0.3,
            "n": 10,
            "judge": None,
        }
    ]


def test_records_keep_every_answer() -> None:
    found = rows()
    written = list(records(found))
    assert len(written) == len(found) * len(METHODS)
    assert {"method", "suite", "kind", "prompt", "response", "outcome", "score", "open"} <= set(written[0])
