"""Vectors learned from answers, on tiny models whose answers are known to come from a vector."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inferaligner.errors import CalibrationError
from inferaligner.fit.strength.teacher_forcing import TeacherForcing
from inferaligner.fit.transfer.answer_vectors import FEWEST, STEPS, AnswerVectors, answer_vectors
from tests.support.tiny_models import FAMILIES, tiny_tokenizer

WORDS = ["bread", "salt", "a long walk by the sea", "rain", "tea", "maps", "ice", "the old bridge"]
PROMPTS = [f"{verb} {word}" for verb in ("Tell me about", "Describe", "Sell me") for word in WORDS]
REFUSALS = ["I cannot help with that.", "No, I will not do that."]
ANSWERS = [REFUSALS[number % 2] for number in range(len(PROMPTS))]


def sharp_model(family: str = "llama") -> Any:
    """Random weights hardly prefer one token to another; with these, a vector can change what is said."""
    model = FAMILIES[family]()
    with torch.no_grad():
        model.get_output_embeddings().weight *= 20  # type: ignore[union-attr]
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_held_out_answers_become_likelier_and_the_model_stays(family: str) -> None:
    model, tokenizer = sharp_model(family), tiny_tokenizer()
    model.get_output_embeddings().weight.requires_grad_(False)
    learns = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taken: list[int] = []
    found = answer_vectors(
        model, tokenizer, PROMPTS, ANSWERS, start={2: torch.zeros(32)}, advance=taken.append
    )
    assert found.start == pytest.approx(found.bare)  # zeros add nothing
    assert found.end < 0.8 * found.bare
    assert sum(taken) == STEPS
    assert found.vectors[2].shape == (32,) and not found.vectors[2].requires_grad
    # What is reported is what the vectors do to those answers.
    rows = sorted(range(len(PROMPTS)), key=lambda row: len(PROMPTS[row]))[3::4]
    forcing = TeacherForcing(model, tokenizer, [PROMPTS[r] for r in rows], [ANSWERS[r] for r in rows])
    assert forcing.cross_entropy(found.vectors) == pytest.approx(found.end, rel=1e-4)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == learns
    assert all(parameter.grad is None for parameter in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_start_is_gone_on_from_and_kept_where_nothing_is_better() -> None:
    model, tokenizer = sharp_model(), tiny_tokenizer()
    first = answer_vectors(model, tokenizer, PROMPTS, ANSWERS, start={2: torch.zeros(32)})
    second = answer_vectors(model, tokenizer, PROMPTS, ANSWERS, start=first.vectors)
    assert second.start == pytest.approx(first.end, rel=1e-4)
    assert second.end <= second.start
    if second.steps == 0:
        assert torch.allclose(second.vectors[2], first.vectors[2], atol=1e-5)


def test_a_start_that_is_worse_than_nothing_is_not_begun_with() -> None:
    model, tokenizer = sharp_model(), tiny_tokenizer()
    zeros = answer_vectors(model, tokenizer, PROMPTS, ANSWERS, start={2: torch.zeros(32)})
    against = {2: -zeros.vectors[2]}
    found = answer_vectors(model, tokenizer, PROMPTS, ANSWERS, start=against)
    assert found.start > found.bare
    assert found.end == pytest.approx(zeros.end) and torch.allclose(found.vectors[2], zeros.vectors[2])


def test_several_layers_are_learned_together() -> None:
    model, tokenizer = sharp_model(), tiny_tokenizer()
    one = answer_vectors(model, tokenizer, PROMPTS, ANSWERS, start={1: torch.zeros(32)})
    two = answer_vectors(model, tokenizer, PROMPTS, ANSWERS, start={1: torch.zeros(32), 2: torch.zeros(32)})
    assert set(two.vectors) == {1, 2} and all(float(v.norm()) > 0 for v in two.vectors.values())
    assert two.end < one.bare


def test_fused_attention_is_back_afterwards() -> None:
    model = sharp_model()
    model.set_attn_implementation("sdpa")
    answer_vectors(model, tiny_tokenizer(), PROMPTS[:8], ANSWERS[:8], start={2: torch.zeros(32)})
    assert model.config._attn_implementation == "sdpa"


def test_too_few_refusals_and_lessons_that_do_not_hold_are_refused() -> None:
    with pytest.raises(CalibrationError, match=f"declined 3 prompts; at least {FEWEST}"):
        answer_vectors(sharp_model(), tiny_tokenizer(), PROMPTS[:3], ANSWERS[:3], start={2: torch.zeros(32)})
    AnswerVectors({}, bare=2.0, start=1.9, end=0.5, steps=40).check("ours", "theirs")
    with pytest.raises(CalibrationError, match=r"No vector makes ours say.*2\.10, unsteered 2\.00"):
        AnswerVectors({}, bare=2.0, start=2.1, end=2.1, steps=0).check("ours", "theirs")
