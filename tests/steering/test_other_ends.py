"""Prompts that do not end as the chat template ends them, under `aligner.apply(model, tokenizer)`."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from inferaligner.aligner import Aligner
from inferaligner.errors import InputError, SteeringError
from inferaligner.method.activations import record_activations
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.prompts.chat import encode_chats
from inferaligner.steering.end_check import UnknownEndWarning
from tests.support.tiny_aligner import PROMPTS, tiny_artifact
from tests.support.tiny_models import THINKING_TEMPLATE, tiny_model, tiny_tokenizer

BEGUN = ["Sure, here is", "{", "The answer is", "\n", "Well then, let us say that the sky"]
READS = (GateRead(0, 0), GateRead(1, 0), GateRead(1, 2))


class World:
    """A tiny model whose guidance gate opens on half of `PROMPTS`, and whose end gate on half of the begun
    answers; nothing is fitted."""

    def __init__(self, template: str | None = None) -> None:
        self.model: Any = tiny_model()
        self.model.generation_config.eos_token_id = None
        self.model.generation_config.pad_token_id = 0
        self.tokenizer = tiny_tokenizer()
        if template is not None:
            self.tokenizer.chat_template = template
        artifact = tiny_artifact(self.model, self.tokenizer)
        self.turns = encode_chats(self.tokenizer, PROMPTS)
        self.prompts = [[*turn, *self.ids(begun)] for turn, begun in zip(self.turns, BEGUN, strict=True)]
        weights = torch.randn(len(READS), 32, generator=torch.Generator().manual_seed(3))
        gate = GuidanceGate("test", READS, weights, 0.0)
        scores = self.score(gate, self.prompts).sort().values
        bias = -float(scores[1] + scores[2]) / 2
        self.ends = EndGate(gate, bias, bias - 0.5)
        self.artifact = replace(artifact, end_gate=self.ends)
        self.aligner = Aligner(self.artifact)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def score(self, gate: GuidanceGate, prompts: list[list[int]]) -> torch.Tensor:
        found = record_activations(self.model, prompts, layers=gate.layers, offsets=gate.offsets)
        return gate.scores(found.values, found.layers, found.offsets)

    def expected(self, prompts: list[list[int]], turns: list[list[int]]) -> list[tuple[float, bool]]:
        by_turn = self.score(self.artifact.gate, turns).tolist()
        by_end = (self.score(self.ends.gate, prompts) + self.ends.begun).tolist()
        return [
            (end if end > 0 >= turn else turn, turn > 0 or end > 0)
            for turn, end in zip(by_turn, by_end, strict=True)
        ]

    def batch(self, prompts: list[list[int]], side: str = "left") -> dict[str, torch.Tensor]:
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        for row, tokens in enumerate(prompts):
            begin = width - len(tokens) if side == "left" else 0
            ids[row, begin : begin + len(tokens)] = torch.tensor(tokens)
        mask = torch.zeros_like(ids)
        for row, tokens in enumerate(prompts):
            begin = width - len(tokens) if side == "left" else 0
            mask[row, begin : begin + len(tokens)] = 1
        return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def same(decisions: Any, expected: list[tuple[float, bool]]) -> None:
    assert [decision.open for decision in decisions] == [is_open for _, is_open in expected]
    for decision, (score, _) in zip(decisions, expected, strict=True):
        assert decision.score == pytest.approx(score, abs=1e-4)


def test_the_cases_are_all_there(world: World) -> None:
    """Opened by the turn alone, by the end alone, by neither; else the tests below show nothing."""
    by_turn = (world.score(world.artifact.gate, world.turns) > 0).tolist()
    by_end = (world.score(world.ends.gate, world.prompts) + world.ends.begun > 0).tolist()
    kinds = set(zip(by_turn, by_end, strict=True))
    assert {(True, False), (False, True), (False, False)} <= kinds, kinds


@pytest.mark.parametrize("options", [{}, {"prefill_chunk_size": 5}, {"use_cache": False}], ids=str)
def test_begun_answers_in_a_batch_of_generate(world: World, options: dict[str, Any]) -> None:
    with world.aligner.apply(world.model, world.tokenizer) as guard:
        world.model.generate(**world.batch(world.prompts), max_new_tokens=3, do_sample=False, **options)
        same(guard.decisions, world.expected(world.prompts, world.turns))


@pytest.mark.parametrize("side", ["left", "right"])
def test_begun_answers_under_either_padding(world: World, side: str) -> None:
    mixed = [world.prompts[0], world.turns[1], *world.prompts[2:]]
    expected = world.expected(mixed, world.turns)
    expected[1] = (
        float(world.score(world.artifact.gate, [world.turns[1]])),
        float(world.score(world.artifact.gate, [world.turns[1]])) > 0,
    )
    with world.aligner.apply(world.model, world.tokenizer) as guard:
        world.model(**world.batch(mixed, side))
        same(guard.decisions, expected)


def test_beams(world: World) -> None:
    with world.aligner.apply(world.model, world.tokenizer) as guard:
        world.model.generate(**world.batch(world.prompts), max_new_tokens=2, num_beams=2, do_sample=False)
        expected = [one for one in world.expected(world.prompts, world.turns) for _ in range(2)]
        same(guard.decisions, expected)


def test_rows_alone_get_what_they_get_in_a_batch(world: World) -> None:
    settings = {"max_new_tokens": 4, "do_sample": False}
    with world.aligner.apply(world.model, world.tokenizer):
        together = world.model.generate(**world.batch(world.prompts), **settings)[:, -4:].tolist()
        alone = [
            world.model.generate(**world.batch([tokens]), **settings)[0, -4:].tolist()
            for tokens in world.prompts
        ]
    assert alone == together


def test_closed_begun_answers_keep_every_bit(world: World) -> None:
    batch = world.batch(world.prompts)
    bare = world.model(**batch).logits
    with world.aligner.apply(world.model, world.tokenizer) as guard:
        gated = world.model(**batch).logits
    rows = torch.tensor([decision.open for decision in guard.decisions])
    real = batch["attention_mask"].bool()
    assert torch.equal(gated[~rows][real[~rows]], bare[~rows][real[~rows]])
    # An open row is steered from its last token on, and nowhere before.
    assert torch.equal(gated[rows][:, :-1][real[rows][:, :-1]], bare[rows][:, :-1][real[rows][:, :-1]])
    assert (gated[rows][:, -1] != bare[rows][:, -1]).any(-1).all()


@pytest.mark.parametrize("cached", [3, 8])
def test_a_cached_beginning(world: World, cached: int) -> None:
    turn, prompt = world.turns[0], world.prompts[0]
    ids = torch.tensor([prompt])
    cache = DynamicCache(config=world.model.config)
    with torch.no_grad():
        world.model(ids[:, :cached], past_key_values=cache)
    with world.aligner.apply(world.model, world.tokenizer) as guard:
        world.model(ids[:, cached:], past_key_values=cache)
        same(guard.decisions, world.expected([prompt], [turn]))


def test_prompt_lengths_say_where_the_begun_answer_ends(world: World) -> None:
    """Behind the prompt stands a continuation that is no part of it."""
    prompt, turn = world.prompts[0], world.turns[0]
    with world.aligner.apply(world.model, world.tokenizer) as guard, guard.prompt_lengths([len(prompt)]):
        world.model(torch.tensor([[*prompt, *world.ids(" and more of it")]]))
        same(guard.decisions, world.expected([prompt], [turn]))


def test_a_think_block_of_the_template_is_judged_by_the_turn() -> None:
    world = World(THINKING_TEMPLATE)
    prompts = [[*turn, *world.ids("<think>\n\n</think>\n\n")] for turn in world.turns]
    scores = world.score(world.artifact.gate, world.turns).tolist()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with world.aligner.apply(world.model, world.tokenizer, on_unknown_end="refuse") as guard:
            world.model.generate(**world.batch(prompts), max_new_tokens=2)
            same(guard.decisions, [(score, score > 0) for score in scores])


def test_raw_text_has_its_own_bias_and_a_warning(world: World) -> None:
    raw = [world.ids(prompt) for prompt in PROMPTS]
    scores = (world.score(world.ends.gate, raw) + world.ends.raw).tolist()
    with world.aligner.apply(world.model, world.tokenizer) as guard:
        with pytest.warns(UnknownEndWarning, match="5 of 5 prompts end without"):
            world.model.generate(**world.batch(raw), max_new_tokens=2)
        same(guard.decisions, [(score, score > 0) for score in scores])
        with warnings.catch_warnings():  # once is enough
            warnings.simplefilter("error")
            world.model.generate(**world.batch(raw), max_new_tokens=2)


def test_the_policy(world: World) -> None:
    raw, begun = world.batch([world.ids(PROMPTS[0])]), world.batch(world.prompts[:1])
    with world.aligner.apply(world.model, world.tokenizer, on_unknown_end="refuse"):
        for batch in (raw, begun):
            with pytest.raises(SteeringError, match="chat template writes"):
                world.model.generate(**batch, max_new_tokens=2)
            with pytest.raises(SteeringError, match="chat template writes"):
                world.model(**batch)
        world.model.generate(**world.batch(world.turns), max_new_tokens=2)
        embedded = world.model.get_input_embeddings()(begun["input_ids"])
        with pytest.raises(SteeringError, match="embeddings"):
            world.model.generate(inputs_embeds=embedded, max_new_tokens=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with world.aligner.apply(world.model, world.tokenizer) as guard:  # there is a gate for begun answers
            world.model.generate(**begun, max_new_tokens=2)
        with world.aligner.apply(world.model, world.tokenizer, on_unknown_end="allow") as guard:
            world.model.generate(**raw, max_new_tokens=2)
            assert len(guard.decisions) == 1


def test_without_a_tokenizer_it_is_said_once(world: World) -> None:
    with world.aligner.apply(world.model) as guard:
        with pytest.warns(UnknownEndWarning, match="without a tokenizer"):
            world.model.generate(**world.batch(world.turns), max_new_tokens=2)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            world.model.generate(**world.batch(world.turns), max_new_tokens=2)
        assert len(guard.decisions) == len(PROMPTS)
    with pytest.raises(InputError, match="needs the tokenizer"):
        world.aligner.apply(world.model, on_unknown_end="refuse")


def test_an_aligner_of_before_reads_both_places_with_its_own_gate(world: World) -> None:
    """What opened at the last token still opens, and what opens at the turn can no longer be closed."""
    old = Aligner(replace(world.artifact, end_gate=None))
    gate = world.artifact.gate
    by_turn, by_end = world.score(gate, world.turns) > 0, world.score(gate, world.prompts) > 0
    with old.apply(world.model, world.tokenizer) as guard:
        with pytest.warns(UnknownEndWarning, match="before begun answers were calibrated"):
            world.model.generate(**world.batch(world.prompts), max_new_tokens=2)
        assert [decision.open for decision in guard.decisions] == (by_turn | by_end).tolist()


@pytest.mark.parametrize("kind", ["begun", "raw"])
def test_nan_opens(world: World, kind: str) -> None:
    broken = EndGate(world.ends.gate, float("nan"), float("nan"))
    aligner = Aligner(replace(world.artifact, end_gate=broken))
    prompts = world.prompts if kind == "begun" else [world.ids(prompt) for prompt in PROMPTS]
    with aligner.apply(world.model, world.tokenizer, on_unknown_end="allow") as guard:
        world.model.generate(**world.batch(prompts), max_new_tokens=2)
        assert all(decision.open for decision in guard.decisions)
