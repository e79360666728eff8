from typing import Any

import pytest
import torch

from inferaligner.errors import PromptTooLongError
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.models.generation import Answer, answer_end_token, generate_answers
from inferaligner.prompts.chat import encode_chats
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import SteeringPlan
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PROMPTS = [
    "How do I bake a loaf of bread at home?",
    "Hi",
    "Explain in a few words why the sky is blue during the day and red in the evening.",
    "Write a story.",
    "What?",
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


@pytest.fixture
def model() -> Any:
    # One that says <|im_end|> (token 2) early in some answers, and late in others.
    model = tiny_model(initializer_range=0.2)
    with torch.no_grad():
        model.lm_head.weight[2] *= 2
    return model


def alone(model: Any, tokenizer: Any, prompt: str, **settings: Any) -> list[int]:
    ids = torch.tensor(encode_chats(tokenizer, [prompt]))
    output = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **settings)
    return output[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_answers_are_those_of_each_prompt_alone(model: Any, tokenizer: Any, batch_size: int) -> None:
    answers = list(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12, batch_size=batch_size))
    assert sorted(answer.row for answer in answers) == [0, 1, 2, 3, 4]
    lengths = set()
    for answer in answers:
        expected = alone(model, tokenizer, PROMPTS[answer.row], max_new_tokens=12)
        assert list(answer.tokens) == expected, "without the padding of its batch"
        assert answer.text == tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert answer.decision is None
        lengths.add(len(answer.tokens))
    assert len(lengths) > 1, "the test needs answers that end at different places"


def test_an_answer_says_whether_the_model_ended_it(model: Any, tokenizer: Any) -> None:
    answers = list(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=12))
    assert {answer.ended for answer in answers} == {True, False}
    for answer in answers:
        assert answer.ended == (answer.tokens[-1] == 2)
        assert answer.ended or len(answer.tokens) == 12


def test_the_end_token_is_the_one_that_the_template_writes(model: Any, tokenizer: Any) -> None:
    assert answer_end_token(model, tokenizer) == 2
    model.generation_config.eos_token_id = [0, 2]
    assert answer_end_token(model, tokenizer) == 2
    model.generation_config.eos_token_id = [7, 9]  # none of them stands in the template
    assert answer_end_token(model, tokenizer) == 7
    model.generation_config.eos_token_id = None
    assert answer_end_token(model, tokenizer) is None


def test_batches_are_sorted_and_yielded_as_they_are_done(model: Any, tokenizer: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    handle = model.register_forward_pre_hook(
        lambda m, args, kwargs: shapes.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    stream = generate_answers(model, tokenizer, PROMPTS, max_new_tokens=1, batch_size=2)
    assert shapes == []
    first = [next(stream), next(stream)]
    assert len(shapes) == 1
    assert {answer.row for answer in first} == {1, 4}, "the two shortest"
    list(stream)
    handle.remove()
    assert [rows for rows, _ in shapes] == [2, 2, 1]
    assert [width for _, width in shapes] == sorted(width for _, width in shapes)


def test_wide_batches_are_cut_by_tokens(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    widest = max(map(len, encode_chats(tokenizer, PROMPTS)))
    monkeypatch.setattr("inferaligner.models.generation.TOKENS_PER_BATCH", widest * 2)
    seen: list[tuple[int, int]] = []
    handle = model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    answers = list(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=1))
    handle.remove()
    assert len(answers) == 5
    assert all(rows * width <= widest * 2 for rows, width in seen)
    assert len(seen) > 1


def opening(width: int = 32) -> SteeringPlan:
    """A gate that opens on some of the prompts."""
    weights = torch.randn(1, width, generator=torch.Generator().manual_seed(1))
    return SteeringPlan(GuidanceGate("test", (GateRead(1),), weights, 0.0), {2: torch.full((width,), 3.0)})


def calibrated(model: Any, tokenizer: Any) -> SteeringPlan:
    plan = opening()
    with Guard(model, plan, "never") as guard:
        answers = decided(model, tokenizer, guard)
    scores = torch.tensor([answer.decision.score for answer in answers])  # type: ignore[union-attr]
    return SteeringPlan(plan.gate.with_bias(-float(scores.median()) - 1e-3), plan.additions)


def decided(model: Any, tokenizer: Any, guard: Guard, **options: Any) -> list[Answer]:
    return list(
        generate_answers(
            model,
            tokenizer,
            PROMPTS,
            max_new_tokens=3,
            batch_size=2,
            decisions=lambda: guard.decisions,
            **options,
        )
    )


@pytest.mark.parametrize(
    ("options", "times"), [({}, 1), ({"num_beams": 3}, 1), ({"num_beams": 3, "num_return_sequences": 2}, 2)]
)
def test_decisions_go_to_their_prompts(
    model: Any, tokenizer: Any, options: dict[str, Any], times: int
) -> None:
    with Guard(model, calibrated(model, tokenizer)) as guard:
        answers = decided(model, tokenizer, guard, **options)
        assert sorted(answer.row for answer in answers) == sorted([0, 1, 2, 3, 4] * times)
        verdicts = set()
        for answer in answers:
            ids = torch.tensor(encode_chats(tokenizer, [PROMPTS[answer.row]]))
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)
            assert answer.decision is not None
            assert answer.decision.open == guard.decisions[0].open
            assert answer.decision.score == pytest.approx(guard.decisions[0].score, abs=1e-4)
            verdicts.add(answer.decision.open)
    assert verdicts == {True, False}


def test_several_return_sequences(model: Any, tokenizer: Any) -> None:
    torch.manual_seed(0)
    options = {"do_sample": True, "num_return_sequences": 3}
    answers = list(generate_answers(model, tokenizer, PROMPTS[:2], max_new_tokens=8, **options))
    assert [answer.row for answer in answers] == [1, 1, 1, 0, 0, 0]
    assert len({answer.tokens for answer in answers}) > 2


def test_system_prompts_reach_the_template(model: Any, tokenizer: Any) -> None:
    (bare,) = generate_answers(model, tokenizer, ["Hi"], max_new_tokens=12)
    (told,) = generate_answers(model, tokenizer, ["Hi"], max_new_tokens=12, system="Speak like a sailor.")
    assert told.tokens != bare.tokens


def test_prompts_that_do_not_fit(tokenizer: Any) -> None:
    model = tiny_model(max_position_embeddings=64)
    ran: list[int] = []
    model.register_forward_pre_hook(lambda *_: ran.append(1))
    with pytest.raises(PromptTooLongError, match="at most 63"):
        next(generate_answers(model, tokenizer, ["Hi", "word " * 60], max_new_tokens=4))
    assert ran == []


def test_answers_end_where_the_context_does(tokenizer: Any) -> None:
    model = tiny_model(max_position_embeddings=40)
    model.generation_config.eos_token_id = None
    (answer,) = generate_answers(model, tokenizer, ["Hi"], max_new_tokens=500)
    assert len(answer.tokens) == 40 - len(encode_chats(tokenizer, ["Hi"])[0])
    (short,) = generate_answers(model, tokenizer, ["Hi"], max_new_tokens=3)
    assert short.tokens == answer.tokens[:3]


def words(tokenizer: Any, tokens: int) -> str:
    """A prompt whose rendering has that many tokens."""
    return "a" * (tokens - len(encode_chats(tokenizer, [""])[0]))


@pytest.mark.parametrize("batch_size", [2, 3, 32])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_no_row_is_cut_to_the_room_of_another(tokenizer: Any, family: str, batch_size: int) -> None:
    settings = {"n_positions": 96} if family == "gpt2" else {"max_position_embeddings": 96}
    model = tiny_model(family, **settings)
    model.generation_config.eos_token_id = None
    prompts = [words(tokenizer, length) for length in (95, 40, 30, 80, 79, 32, 80, 31)]
    expected = {
        row: alone(model, tokenizer, prompt, max_new_tokens=min(64, 96 - length))
        for row, prompt in enumerate(prompts)
        for length in [len(encode_chats(tokenizer, [prompt])[0])]
    }
    assert [len(tokens) for tokens in expected.values()] == [1, 56, 64, 16, 17, 64, 16, 64]
    answers = generate_answers(model, tokenizer, prompts, max_new_tokens=64, batch_size=batch_size)
    assert {answer.row: list(answer.tokens) for answer in answers} == expected


def test_prompts_with_the_same_room_still_share_a_batch(tokenizer: Any) -> None:
    model = tiny_model(max_position_embeddings=96)
    seen: list[int] = []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(kwargs["input_ids"].shape[0]), with_kwargs=True
    )
    prompts = [words(tokenizer, length) for length in (30, 31, 92, 93, 93)]
    list(generate_answers(model, tokenizer, prompts, max_new_tokens=4))
    assert seen[0] == 3, "all three have room for four tokens"
    assert 2 in seen, "two prompts of one length have the same room"


def test_decisions_go_to_their_prompts_where_rooms_differ(tokenizer: Any) -> None:
    model = tiny_model(max_position_embeddings=96)
    prompts = [words(tokenizer, length) for length in (95, 40, 90, 33)]
    with Guard(model, opening(), "never") as guard:
        together = generate_answers(
            model, tokenizer, prompts, max_new_tokens=50, decisions=lambda: guard.decisions
        )
        scores = {answer.row: answer.decision.score for answer in together if answer.decision}
    with Guard(model, opening(), "never") as guard:
        for row, prompt in enumerate(prompts):
            ids = torch.tensor(encode_chats(tokenizer, [prompt]))
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=1)
            assert scores[row] == pytest.approx(guard.decisions[0].score, abs=1e-4)


@pytest.mark.parametrize("end", [5, [5, 6], None])
def test_other_ends_of_text(tokenizer: Any, end: Any) -> None:
    model = tiny_model(initializer_range=0.2)
    model.generation_config.eos_token_id = None
    (whole,) = generate_answers(model, tokenizer, ["Hi"], max_new_tokens=8)
    stop = whole.tokens[3]
    chosen = stop if end == 5 else [stop, 319] if end else None
    both = generate_answers(model, tokenizer, PROMPTS[:2], max_new_tokens=8, eos_token_id=chosen)
    answer = next(answer for answer in both if answer.row == 1)
    assert answer.tokens == alone_until(model, tokenizer, PROMPTS[1], stop if end else None)


def alone_until(model: Any, tokenizer: Any, prompt: str, stop: int | None) -> tuple[int, ...]:
    tokens = alone(model, tokenizer, prompt, max_new_tokens=8)
    return tuple(tokens[: tokens.index(stop) + 1] if stop in tokens else tokens)
