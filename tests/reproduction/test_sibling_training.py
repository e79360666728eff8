"""The sibling's recipe: what is drawn, what is learned from, the loss, the files, and what is counted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reproduction.sibling.answers import answer_tokens, own_answers
from reproduction.sibling.figures import outcome, repeats_itself, summary
from reproduction.sibling.prompts import TRAINED, Asked, Draw, draw_prompts, encode
from reproduction.sibling.recipe import Recipe
from reproduction.sibling.rows import Row, collate, own_rows, refusal_rows
from reproduction.sibling.training import divergence, token_weights, train

from inferaligner.judges.rules import judge
from inferaligner.prompts.contrast import ContrastSet, load_contrast_set
from tests.support.tiny_models import tiny_model, tiny_tokenizer

_FEW = Draw(*[6] * 6)


@pytest.fixture(scope="module")
def contrast() -> ContrastSet:
    return load_contrast_set()


@pytest.fixture(scope="module")
def asked(contrast: ContrastSet) -> list[Asked]:
    return draw_prompts(contrast, TRAINED, _FEW, seed=0)


# The prompts


def test_a_draw_has_every_kind_on_both_sides_and_is_the_same_every_time(
    contrast: ContrastSet, asked: list[Asked]
) -> None:
    kinds = [(one.source, one.harmful) for one in asked]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        ("plain", True): 6,
        ("plain", False): 6,
        ("lookalike", False): 6,
        ("benign", False): 6,
        ("wrapped", True): 6,
        ("wrapped", False): 6,
        ("conversation", True): 6,
        ("conversation", False): 6,
    }
    assert draw_prompts(contrast, TRAINED, _FEW, seed=0) == asked
    assert draw_prompts(contrast, TRAINED, _FEW, seed=1) != asked


def test_nothing_that_is_measured_is_learned_from(contrast: ContrastSet) -> None:
    learned = draw_prompts(contrast, TRAINED, Draw(conversations=300), seed=0)
    measured = draw_prompts(contrast, ["test"], Draw(conversations=300), seed=0)
    assert {one.prompt.part for one in learned} == set(TRAINED)
    assert not {one.key for one in learned} & {one.key for one in measured}

    def before(drawn: list[Asked], roles: set[str]) -> set[str]:
        return {text for one in drawn for role, text in one.turns[:-1] if role in roles}

    for roles in ({"system"}, {"assistant"}):
        mine, other = before(learned, roles), before(measured, roles)
        refusals = {refusal.text for refusal in contrast.refusal_texts}
        assert mine and other and not (mine - refusals) & (other - refusals)


def test_conversations_end_with_the_prompt_and_alternate(contrast: ContrastSet) -> None:
    drawn = draw_prompts(contrast, TRAINED, Draw(0, 0, 0, 0, 0, 80), seed=0)
    for one in drawn:
        roles = [role for role, _ in one.turns]
        spoken = [role for role in roles if role != "system"]
        assert len(roles) >= 2 and "system" not in roles[1:]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2) + ["user"]
        assert one.turns[-1] == ("user", one.prompt.text)
    starts = {one.turns[0][0] for one in drawn}
    assert starts == {"system", "user"}


# The rows


def test_refusals_end_and_fit_what_is_asked(contrast: ContrastSet, asked: list[Asked]) -> None:
    tokenizer = tiny_tokenizer()

    def texts(named: float) -> list[str]:
        rows = refusal_rows(tokenizer, asked, contrast, named=named, longest=10**6, seed=0)
        assert all(row.harmful and row.answer[-1] == tokenizer.eos_token_id for row in rows)
        return [tokenizer.decode(row.answer[:-1]) for row in rows]

    harmful = [one for one in asked if one.harmful]
    for one, text in zip(harmful, texts(1.0), strict=True):
        assert text in contrast.refusals_to(one.prompt) and judge(text).outcome == "refusal"
    for one, text in zip(harmful, texts(0.0), strict=True):
        known = contrast.refusals()
        if one.source == "conversation":
            assert text in known["conversation"]
        elif one.prompt.attack:
            assert text in known["frame"]
        else:
            assert text in known[one.prompt.category] + known["general"]
    longest = min(len(ids) for ids in encode(tokenizer, harmful))
    assert refusal_rows(tokenizer, asked, contrast, named=1.0, longest=longest - 1, seed=0) == []


def test_own_answers_are_kept_and_gone_on_with(asked: list[Asked], tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    harmless = [one for one in asked if one.source == "lookalike"]
    file = tmp_path / "answers.jsonl"
    first = own_answers(model, tokenizer, harmless[:4], file, tokens=5, batch_size=3)
    lines = file.read_text().splitlines()
    assert len(lines) == 4
    found = own_answers(model, tokenizer, harmless, file, tokens=5, batch_size=3)
    assert file.read_text().splitlines()[:4] == lines and len(file.read_text().splitlines()) == 6
    assert {key: found[key] for key in first} == first
    alone = dict(answer_tokens(model, tokenizer, harmless[5:], tokens=5))
    assert found[harmless[5].key] == alone[0]
    assert len(own_answers(model, tokenizer, harmless[:1], file, tokens=7)[harmless[0].key]) >= 6
    rows = own_rows(tokenizer, asked[:0] + harmless, found, longest=10**6)
    assert [row.answer for row in rows] == [found[one.key] for one in harmless]


def test_a_batch_marks_answers_and_pads_on_the_right() -> None:
    batch = collate([Row([5, 6], [7, 2], True), Row([8, 9, 10], [11, 12, 13], False)], padding=0)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 2, 0, 0], [8, 9, 10, 11, 12, 13]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1, 0, 0], [1] * 6]
    assert batch["answer"].int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
    assert batch["harmful"].tolist() == [True, False]


# The loss


def test_the_divergence_is_the_one_of_torch() -> None:
    base, sibling = torch.randn(2, 5, 11, generator=torch.manual_seed(0)).unbind()
    expected = torch.nn.functional.kl_div(
        sibling.log_softmax(-1), base.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    assert torch.allclose(divergence(base, sibling), expected, atol=1e-6)
    assert torch.allclose(divergence(base, base), torch.zeros(5), atol=1e-6)


def test_the_first_token_of_an_answer_counts_more() -> None:
    said = torch.tensor([[False, True, True, True], [False, False, False, True]])
    expected = torch.tensor([[0, 0.6, 0.2, 0.2], [0, 0, 0, 1.0]])
    assert torch.allclose(token_weights(said, 3.0), expected)


def test_training_teaches_refusals_and_leaves_the_rest_alone(tmp_path: Path) -> None:
    torch.manual_seed(0)
    recipe = replace(Recipe(), rank=4, epochs=60.0, batch_size=4)
    recipe = replace(recipe, first_layer=0.0, last_layer=1.0, learning_rate=1e-2)
    said = [40, 41, 42, 2]
    rows = [Row([10 + at, 20, 21], said, True) for at in range(2)]
    rows += [Row([30 + at, 20, 21], [50, 51, 52, 53, 54], False) for at in range(2)]
    model: Any = tiny_model("llama")

    def told(row: Row) -> torch.Tensor:
        ids = torch.tensor([row.asked + row.answer])
        with torch.no_grad():
            return model(ids).logits[0, len(row.asked) - 1 : -1].float()

    before = [told(row) for row in rows]
    model = train(model, rows, recipe, padding=0, checkpoints=tmp_path)
    model.eval()
    after = [told(row) for row in rows]
    for row, was, now in zip(rows, before, after, strict=True):
        if row.harmful:
            assert was.argmax(-1).tolist() != said and now.argmax(-1).tolist() == said
        else:
            assert float(divergence(was, now).mean()) < 0.05
    assert any(tmp_path.glob("checkpoint-*"))


# What is counted


def test_a_refusal_that_ends_is_told_from_a_loop() -> None:
    good = outcome("I won't help with that. I can suggest who might help you instead.", 16, True)
    assert good.declined and good.ended and not good.looped
    assert good.opening == "I won't help with that. I can suggest"
    loop = outcome("I can't help with this kind of thing, but " * 12, 120, False)
    assert loop.looped and not loop.ended
    answer = outcome("Lisbon is the capital of Portugal.", 8, True)
    assert not answer.declined and answer.opening == ""
    found = summary([good, loop, answer, good])
    assert (found["n"], found["ended"], found["looped"]) == (4, 0.75, 0.25)
    assert found["openings"] == len({one.opening for one in (good, loop) if one.declined})


def test_trigrams_that_return_are_a_loop_and_an_ordinary_text_is_none() -> None:
    assert repeats_itself("you can help them to find a way and " * 5)
    assert not repeats_itself(
        "Boil the eggs for six minutes, cool them in cold water, and peel them under the tap; "
        "serve them with bread, salt and a little butter while they are warm."
    )
    assert not repeats_itself("No, no, no, no, no.")
