"""Rows that have ended leave the batch, and the answers are those of transformers' own loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from inferaligner.models.generation import generate_answers, generate_batches
from inferaligner.models.shrinking_batch import ShrinkingBatch, can_shrink
from inferaligner.prompts.chat import encode_chats
from tests.support.tiny_models import FAMILIES, tiny_model, tiny_tokenizer
from tests.support.uneven_answers import PROMPTS, TOKENS, answers_of, let_answers_end, sizes_of_passes

_WHOLE = ("mpt", "odd_h", "odd_layers")
"""Families with a cache or a loop of their own, which rows cannot leave."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def model(tokenizer: Any) -> Any:
    made = tiny_model()
    let_answers_end(made, tokenizer)
    return made


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_answers_are_those_of_the_whole_batch(family: str, tokenizer: Any) -> None:
    model = FAMILIES[family]()
    let_answers_end(model, tokenizer)
    with sizes_of_passes(model) as whole:
        expected = answers_of(model, tokenizer, shrink=False)
    with sizes_of_passes(model) as shrunk:
        answers = answers_of(model, tokenizer)
    assert answers == expected
    assert len({len(answer.tokens) for answer in answers}) >= 2, "the test needs different lengths"
    assert len(shrunk) == len(whole) and set(whole) == {len(PROMPTS)}
    if family not in _WHOLE:
        assert can_shrink(model)
        assert shrunk == sorted(shrunk, reverse=True) and len(set(shrunk)) >= 2
    else:
        assert shrunk == whole


def test_rows_leave_once_they_are_a_quarter_of_the_batch(model: Any, tokenizer: Any) -> None:
    with sizes_of_passes(model) as sizes:
        answers = answers_of(model, tokenizer)
    lengths = [len(answer.tokens) for answer in answers]
    rows, expected = list(range(len(PROMPTS))), []
    for step in range(max(lengths)):  # a pass computes the token after `step` new ones
        ended = [row for row in rows if lengths[row] <= step]
        if 4 * len(ended) >= len(rows):
            rows = [row for row in rows if row not in ended]
        expected.append(len(rows))
    assert sizes == expected


def test_the_batch_is_returned_as_generate_returns_it(model: Any, tokenizer: Any) -> None:
    (shrunk,) = generate_batches(model, tokenizer, PROMPTS, max_new_tokens=TOKENS)
    (whole,) = generate_batches(model, tokenizer, PROMPTS, max_new_tokens=TOKENS, shrink=False)
    assert shrunk.rows == whole.rows and torch.equal(shrunk.tokens, whole.tokens)


@pytest.mark.parametrize("change", [-3, 3, "first", "reversed"])
def test_in_step_with_another_run(model: Any, tokenizer: Any, change: Any) -> None:
    """Rows leave where the other run's did; what they say does not change with it."""
    with sizes_of_passes(model) as free:
        expected = answers_of(model, tokenizer)
    own = [len(answer.tokens) for answer in expected]
    if change == "first":
        other = [1] * len(own)
    elif change == "reversed":
        other = own[::-1]
    else:
        other = [max(1, min(TOKENS, length + change)) for length in own]
    with sizes_of_passes(model) as sizes:
        answers = answers_of(model, tokenizer, in_step_with=other)
    assert answers == expected
    with sizes_of_passes(model) as same:
        assert answers_of(model, tokenizer, in_step_with=own) == expected
    assert same == free
    assert (sizes == free) == (change == "first"), "where all rows leave at once, they go on as one batch"


def test_rows_alike_go_through_passes_of_the_same_sizes(model: Any, tokenizer: Any) -> None:
    """Another run, half of whose rows get longer or shorter answers: the others cannot see a difference."""
    with sizes_of_passes(model) as free:
        expected = answers_of(model, tokenizer)
    others = [len(a.tokens) if a.row % 2 else TOKENS - len(a.tokens) + 1 for a in expected]
    with sizes_of_passes(model) as sizes:
        answers_of(model, tokenizer, in_step_with=others)
    rows, schedule = list(range(len(PROMPTS))), []
    for step in range(max(length for row, length in enumerate(others) if row % 2)):
        if 4 * sum(others[row] <= step for row in rows) >= len(rows):
            rows = [row for row in rows if others[row] > step]
        schedule.append(len(rows))
    assert sizes[: len(schedule)] == schedule != free[: len(schedule)]


def test_rows_that_had_to_leave_go_on_together(model: Any, tokenizer: Any) -> None:
    model.generation_config.eos_token_id = None
    others = [2] * 4 + [4] * 4 + [TOKENS] * 4
    with sizes_of_passes(model) as sizes:
        answers = answers_of(model, tokenizer, in_step_with=others)
    assert all(len(answer.tokens) == TOKENS for answer in answers)
    # The main batch; then the first four alone for two steps, and with the other four to the end.
    assert sizes == [12] * 2 + [8] * 2 + [4] * (TOKENS - 4) + [4] * 2 + [8] * (TOKENS - 4)


@pytest.mark.parametrize(
    "options",
    [{"min_new_tokens": 2}, {"do_sample": True}, {"num_beams": 2}, {"cache_implementation": "static"}],
)
def test_with_other_settings_no_row_leaves(model: Any, tokenizer: Any, options: dict[str, Any]) -> None:
    with sizes_of_passes(model) as sizes:
        answers_of(model, tokenizer, **options)
    assert len(set(sizes)) == 1


@pytest.mark.parametrize(
    "setting",
    [{"num_beams": 2}, {"cache_implementation": "static"}, {"use_cache": False}],
)
def test_a_model_whose_own_settings_are_others_keeps_its_rows(
    model: Any, tokenizer: Any, setting: dict[str, Any]
) -> None:
    assert can_shrink(model)
    model.generation_config.update(**setting)
    assert not can_shrink(model)
    with sizes_of_passes(model) as sizes:
        answers_of(model, tokenizer)
    assert len(set(sizes)) == 1


def test_a_compiled_model_keeps_its_rows(model: Any) -> None:
    assert can_shrink(model)
    assert not can_shrink(torch.compile(model))
    model.compile()
    assert not can_shrink(model)


@pytest.mark.parametrize("follows", [True, False])
def test_processors_that_may_know_the_rows_keep_them(model: Any, tokenizer: Any, follows: bool) -> None:
    """A processor of unknown kind that stands in the call; one that declares that it follows the rows."""

    class Nothing(LogitsProcessor):
        follows_rows = follows

        def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            return scores

    batch = tokenizer.pad({"input_ids": encode_chats(tokenizer, PROMPTS)}, return_tensors="pt")
    with sizes_of_passes(model) as sizes:
        model.generate(
            **batch,
            max_new_tokens=TOKENS,
            do_sample=False,
            logits_processor=LogitsProcessorList([Nothing()]),
            custom_generate=ShrinkingBatch(),
        )
    assert (len(set(sizes)) >= 3) == follows


def test_another_cache_is_left_to_transformers(model: Any, tokenizer: Any) -> None:
    """One that the loop cannot take rows from, handed over in the call itself."""
    ids = torch.tensor(encode_chats(tokenizer, ["Hi", "Hi"]))
    settings = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4, "do_sample": False}
    expected = model.generate(ids, **settings)
    loop = ShrinkingBatch()
    static = model.generate(ids, cache_implementation="static", custom_generate=loop, **settings)
    assert torch.equal(static, expected)


def test_answers_end_where_the_context_does(tokenizer: Any) -> None:
    model = tiny_model(max_position_embeddings=48)
    model.generation_config.eos_token_id = None
    expected = [
        len(a.tokens)
        for a in generate_answers(model, tokenizer, ["Hi", "Yo"], max_new_tokens=99, shrink=False)
    ]
    found = [len(a.tokens) for a in generate_answers(model, tokenizer, ["Hi", "Yo"], max_new_tokens=99)]
    assert found == expected
