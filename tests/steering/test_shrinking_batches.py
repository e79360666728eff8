"""Under a guard, rows that have ended leave the batch with their state, and nobody's answer changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inferaligner.method.monitor import AnswerMonitor
from inferaligner.steering.guard import Guard
from inferaligner.steering.row_state import CarriedRows
from tests.support.tiny_aligner import tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.uneven_answers import PROMPTS, answers_of, let_answers_end, sizes_of_passes

REFUSAL = "No, never."


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture(params=["llama", "gemma3"])
def model(request: pytest.FixtureRequest, tokenizer: Any) -> Any:
    model = tiny_model(request.param)
    let_answers_end(model, tokenizer)
    return model


def some_monitor(model: Any, tokenizer: Any) -> AnswerMonitor:
    """A monitor that opens some answers, at different tokens."""
    weights = torch.randn(32, generator=torch.Generator().manual_seed(4))
    for bias in (-0.05, -0.1, -0.2, -0.4, -0.8, -1.6, -3.2, -6.4):
        monitor = AnswerMonitor("test", 1, 3, weights, 0.0, bias)
        aligner = tiny_aligner(model, tokenizer, prompts=PROMPTS, monitor=monitor)
        with aligner.apply(model, tokenizer) as guard:
            answers = answers_of(model, tokenizer, decisions=lambda: guard.decisions, shrink=False)
        tokens = {answer.decision.answer_token for answer in answers if answer.decision}
        if len(tokens) >= 3 and not all(answer.decision.open for answer in answers if answer.decision):
            return monitor
    raise AssertionError("no bias opens some answers at different tokens and leaves others closed")


def guarded(model: Any, tokenizer: Any, how: str) -> Guard:
    monitor = some_monitor(model, tokenizer) if how == "monitor" else None
    aligner = tiny_aligner(model, tokenizer, prompts=PROMPTS, monitor=monitor)
    if how == "refuse":
        return aligner.apply(model, tokenizer, on_open="refuse", refusal=REFUSAL)
    return aligner.apply(model, tokenizer, mode="always" if how == "always" else "gate")


def run(model: Any, tokenizer: Any, how: str, **options: Any) -> tuple[list[Any], CarriedRows, list[int]]:
    """The answers with their decisions, the guard's state of the rows, and the sizes of the passes."""
    with guarded(model, tokenizer, how) as guard, sizes_of_passes(model) as sizes:
        answers = answers_of(model, tokenizer, decisions=lambda: guard.decisions, **options)
        return answers, guard.carried(), sizes


def watched(rows: CarriedRows) -> list[int]:
    """Where the monitor opened rows. It does not read a batch whose rows are all open from the prompt on."""
    opened = zip(rows.open.tolist(), rows.opened_at(), strict=True)
    return [0 if at_prompt else number for at_prompt, number in opened]


@pytest.mark.parametrize("how", ["gate", "always", "refuse", "monitor"])
def test_answers_decisions_and_states_are_those_of_the_whole_batch(
    model: Any, tokenizer: Any, how: str
) -> None:
    expected, state, whole = run(model, tokenizer, how, shrink=False)
    answers, carried, sizes = run(model, tokenizer, how)
    assert answers == expected, "their decisions too"
    assert set(whole) == {len(PROMPTS)} and len(whole) == len(sizes)
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) >= 2 or how == "always", "steered answers need not end"
    assert torch.equal(carried.scores, state.scores) and torch.equal(carried.open, state.open)
    assert watched(carried) == watched(state)
    opened = {answer.decision.open for answer in answers}
    assert opened == ({True} if how == "always" else {True, False})
    if how == "refuse":
        assert all(answer.text.startswith(REFUSAL) == answer.decision.open for answer in answers)


@pytest.mark.parametrize("how", ["gate", "refuse", "monitor"])
def test_in_step_with_the_bare_model(model: Any, tokenizer: Any, how: str) -> None:
    """Closed rows go through passes of the bare run's sizes; open rows that take longer go on afterwards."""
    with sizes_of_passes(model) as bare_sizes:
        bare = answers_of(model, tokenizer)
    lengths = [len(answer.tokens) for answer in bare]
    expected, state, _ = run(model, tokenizer, how, shrink=False)
    answers, carried, sizes = run(model, tokenizer, how, in_step_with=lengths)
    assert answers == expected
    assert torch.equal(carried.open, state.open) and watched(carried) == watched(state)
    closed = [answer for answer in answers if not answer.decision.open]
    assert all(answer.tokens == bare[answer.row].tokens for answer in closed)
    together = max(len(answer.tokens) for answer in closed)
    assert sizes[:together] == bare_sizes[:together]
    _, _, free = run(model, tokenizer, how)
    assert sizes != free, "the test needs open rows that end elsewhere"


def test_two_guards_on_one_model(model: Any, tokenizer: Any) -> None:
    first, second = (tiny_aligner(model, tokenizer, prompts=PROMPTS, seed=seed) for seed in (0, 7))

    def both(**options: Any) -> list[Any]:
        with first.apply(model, tokenizer) as one, second.apply(model, tokenizer) as two:
            answers = answers_of(model, tokenizer, **options)
            return [answers, one.decisions, two.decisions]

    expected = both(shrink=False)
    assert both() == expected
    assert expected[1] != expected[2]
