"""The strength search finds the layers and the strength that make the target say what the guide says.

The target is a tiny model with a known lever: the embedding row of one word, added to the residual stream,
makes it say that word. The "aligned model's answers" are that word.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from inferaligner.errors import CalibrationError
from inferaligner.fit.strength import layer_profile
from inferaligner.fit.strength.layer_profile import descend
from inferaligner.fit.strength.search_prompts import GuideAnswer, SearchPrompts
from inferaligner.fit.strength.strength_grid import STRENGTHS, layer_blocks, scaled, walk
from inferaligner.fit.strength.strength_search import MARGINS, choose, merit, search_strength
from inferaligner.fit.strength.teacher_forcing import TeacherForcing
from inferaligner.fit.strength.trial import Trial
from inferaligner.method.gate import GateRead, GuidanceGate
from tests.support.tiny_models import tiny_model, tiny_tokenizer

WORD = " the"
PROMPTS = [f"Explain why the sky is {colour}." for colour in ("blue", "red", "green", "dark")]


@pytest.fixture(scope="module")
def lever() -> tuple[Any, Any, Tensor, str]:
    model, tokenizer = tiny_model("llama", tie_word_embeddings=True), tiny_tokenizer()
    token = tokenizer(WORD, add_special_tokens=False)["input_ids"][0]
    direction = model.get_output_embeddings().weight[token].detach().float()
    return model, tokenizer, (4 * direction).expand(4, -1).clone(), tokenizer.decode([token])


def gate(layer: int = 1) -> GuidanceGate:
    return GuidanceGate("test", (GateRead(layer),), torch.zeros(1, 32), 1.0)


def outcome(word: str) -> Any:
    def judge(answer: str) -> str:
        said = answer.count(word.strip())
        return "refusal" if said >= 3 else "gibberish" if not answer else "compliance"

    return judge


def run(lever: tuple[Any, Any, Tensor, str], **options: Any) -> Any:
    model, tokenizer, directions, word = lever
    on = SearchPrompts(
        scored=tuple(PROMPTS[:2]),
        answers=(GuideAnswer(word * 5, ended=False),) * 2,
        held_out=tuple(PROMPTS[2:]),
        harmless=("Why?",),
        harmless_answers=("Because of how light scatters",),
        harmless_unsteered=("compliance",),
    )
    settings = {"prompts": on, **options}
    return search_strength(model, tokenizer, directions, gate(), outcome=outcome(word), **settings)


def test_the_search_lowers_the_cross_entropy_and_changes_the_answers(lever: Any) -> None:
    search = run(lever)
    assert search.chosen.cross_entropy < search.unsteered - 0.1
    assert search.chosen.refusal == 1.0
    assert min(search.chosen.layers) >= 1  # never below the gate
    assert (search.prompts, search.generated) == (2, 2)


def test_what_the_user_fixed_is_kept(lever: Any) -> None:
    search = run(lever, layers=(2, 3), strength=0.7)
    assert {(trial.layers, trial.strength) for trial in search.trials} == {((2, 3), 0.7)}
    assert search.chosen.refusal is not None


def test_the_model_is_left_as_it_was(lever: Any) -> None:
    model, tokenizer, _, _ = lever
    ids = tokenizer("Explain", return_tensors="pt")["input_ids"]
    before = model(ids).logits
    run(lever, layers=(2,), strength=0.5)
    assert torch.equal(model(ids).logits, before)
    assert not any("forward" in layer.__dict__ for layer in model.model.layers)


def test_without_declined_prompts_there_is_nothing_to_search(lever: Any) -> None:
    with pytest.raises(CalibrationError, match="`aligned`"):
        run(lever, prompts=SearchPrompts((), (), tuple(PROMPTS)))


def test_progress_is_reported(lever: Any) -> None:
    reported: list[str] = []
    run(lever, layers=(2,), strength=0.5, report=reported.append)
    assert any("cross-entropy" in line for line in reported) and any("refusals" in line for line in reported)


def test_blocks_lie_between_the_gate_and_the_last_layer() -> None:
    blocks = layer_blocks(12, 30)
    assert min(block[0] for block in blocks) == 12
    assert max(block[-1] for block in blocks) in (27, 28)
    assert len({len(block) for block in blocks}) == 4
    assert all(block == tuple(range(block[0], block[-1] + 1)) for block in blocks)


def test_a_gate_in_the_last_layers_still_leaves_a_block() -> None:
    assert layer_blocks(3, 4) == [(3,)]


def test_the_least_drift_among_equals_is_chosen() -> None:
    strong = Trial((1, 2), 0.6, 2.0, refusal=0.97, compliance=0.03, gibberish=0.0, drift=1.5)
    weak = Trial((1, 2), 0.2, 2.1, refusal=0.96, compliance=0.04, gibberish=0.0, drift=0.4)
    low = Trial((1,), 0.2, 2.1, refusal=0.97, compliance=0.03, gibberish=0.0, drift=0.9)
    poor = Trial((1, 2), 0.05, 1.0, refusal=0.5, compliance=0.5, gibberish=0.0, drift=0.0)
    assert choose([strong, weak, low, poor]) is weak
    bare = [replace(trial, drift=None) for trial in (strong, weak, poor)]
    assert choose(bare) is bare[1]  # the weakest, where no drift was measured


def test_fluent_refusals_are_not_bought_with_gibberish() -> None:
    loud = Trial((1, 2), 0.6, 2.0, refusal=0.60, compliance=0.05, gibberish=0.35)
    calm = Trial((1, 2), 0.3, 2.0, refusal=0.55, compliance=0.45, gibberish=0.0)
    assert choose([loud, calm]) is calm


def test_refusals_that_do_not_end_count_for_nothing_where_the_guide_ends_its_own(lever: Any) -> None:
    answers = (GuideAnswer(lever[3] * 5, ended=True),) * 2
    on = SearchPrompts(tuple(PROMPTS[:2]), answers, tuple(PROMPTS[2:]))
    search = run(lever, prompts=on, layers=(2,), strength=1.7)
    assert (search.chosen.refusal, search.chosen.unended) == (0.0, 1.0)
    assert merit(search.chosen) == 0.0


def test_drift_and_answers_to_harmless_prompts_are_told(lever: Any) -> None:
    search = run(lever)
    assert search.harmless == 1 and search.harmless_unsteered == {
        "refusal": 0.0,
        "compliance": 1.0,
        "gibberish": 0.0,
        "unended": 0.0,
    }
    chosen = search.chosen
    model, tokenizer, directions, _ = lever
    forcing = TeacherForcing(model, tokenizer, ["Why?"], ["Because of how light scatters"])
    lost = forcing.cross_entropy(chosen.additions(directions)) - forcing.cross_entropy({})
    assert chosen.drift == pytest.approx(lost, abs=1e-5)
    told = chosen.harmless_refusal, chosen.harmless_compliance, chosen.harmless_gibberish
    assert sum(share or 0.0 for share in told) == pytest.approx(1.0)
    assert chosen in search.trials


def test_a_setting_that_breaks_harmless_answers_gives_way(lever: Any) -> None:
    """Every setting refuses alike; the weakest is taken first, and its harmless answers are called broken."""
    model, tokenizer, directions, word = lever
    asked: list[str] = []

    def judge(answer: str) -> str:
        asked.append(answer)
        return "refusal"

    on = SearchPrompts(
        tuple(PROMPTS[:2]),
        (GuideAnswer(word * 5, ended=False),) * 2,
        tuple(PROMPTS[2:]),
        ("Why?",),
        ("Because of",),
        ("compliance",),
    )
    plain = search_strength(model, tokenizer, directions, gate(), prompts=on, outcome=judge)
    weakest = min((t for t in plain.trials if t.refusal is not None), key=lambda t: t.drift or 0.0)
    assert (plain.chosen.layers, plain.chosen.strength) == (weakest.layers, weakest.strength)

    # The harmless answer is judged alone: harmful ones come before it, and those of the margin after it.
    harmless = len(asked) - len(on.held_out)
    picks = 0

    def breaking(answer: str) -> str:
        nonlocal picks
        picks += 1
        return "gibberish" if picks == harmless else "refusal"

    other = search_strength(model, tokenizer, directions, gate(), prompts=on, outcome=breaking)
    broken = [trial for trial in other.trials if trial.harmless_gibberish == 1.0]
    assert [(t.layers, t.strength) for t in broken] == [(weakest.layers, weakest.strength)]
    assert (other.chosen.layers, other.chosen.strength) != (weakest.layers, weakest.strength)
    assert other.chosen.harmless_gibberish == 0.0


def test_the_margin_is_left_out_where_it_breaks_the_text(lever: Any) -> None:
    model, tokenizer, directions, word = lever
    on = SearchPrompts(tuple(PROMPTS[:2]), (GuideAnswer(word * 5, ended=False),) * 2, tuple(PROMPTS[2:]))
    asked: list[str] = []

    def judge(answer: str) -> str:
        asked.append(answer)
        return "refusal"

    plain = search_strength(model, tokenizer, directions, gate(), prompts=on, outcome=judge)
    assert plain.margin == MARGINS[0]
    before = len(asked) - len(on.held_out)
    judged = 0

    def breaking(answer: str) -> str:
        nonlocal judged
        judged += 1
        return "refusal" if judged <= before else "compliance"

    other = search_strength(model, tokenizer, directions, gate(), prompts=on, outcome=breaking)
    assert other.margin == 1.0
    assert other.chosen.strength == plain.chosen.strength
    given = search_strength(
        model, tokenizer, directions, gate(), prompts=on, outcome=judge, strength=plain.chosen.strength
    )
    assert given.margin == 1.0, "a strength that was asked for is taken as it is"


def test_the_strength_is_lowered_while_nothing_is_lost(lever: Any) -> None:
    search = run(lever)
    weaker = [t for t in search.trials if t.layers == search.chosen.layers and t.refusal is not None]
    assert len(weaker) > 1
    good = [t for t in search.trials if t.refusal is not None and t.refusal >= search.most - search.tolerance]
    assert search.chosen.drift == min(t.drift for t in good if t.drift is not None)


def test_blocks_below_the_gate_tell_what_the_order_costs(lever: Any) -> None:
    model, tokenizer, directions, word = lever
    on = SearchPrompts(tuple(PROMPTS[:2]), (GuideAnswer(word * 5, ended=False),) * 2, tuple(PROMPTS[2:]))
    late = GuidanceGate("test", (GateRead(2),), torch.zeros(1, 32), 1.0)
    search = search_strength(model, tokenizer, directions, late, prompts=on, outcome=outcome(word))
    assert search.gate_layer == 2
    assert search.below and all(trial.layers[0] < 2 for trial in search.below)
    assert all(trial.layers[0] >= 2 for trial in search.trials)
    values = [trial.cross_entropy for trial in search.below]
    assert values == sorted(values)
    fixed = search_strength(
        model, tokenizer, directions, late, prompts=on, outcome=outcome(word), layers=(2,), strength=0.5
    )
    assert fixed.below == ()


def test_each_valley_is_walked_to_its_bottom() -> None:
    """A surface with known valleys: the walk finds the lowest of each block without trying everything."""
    bottoms = {(5,): 2, (6,): 4, (7,): 5, (5, 6): 1}
    tried: list[tuple[tuple[int, ...], float]] = []

    def score(layers: Any, strength: float) -> Trial:
        at = [scaled(one, len(layers)) for one in STRENGTHS].index(strength)
        tried.append((tuple(layers), strength))
        return Trial(tuple(layers), strength, 1.0 + 0.2 * abs(at - bottoms[tuple(layers)]))

    trials = walk(bottoms, score, 3.0)
    assert len(tried) == len(set(tried)) < len(bottoms) * len(STRENGTHS)
    for block, bottom in bottoms.items():
        best = min((t for t in trials if t.layers == block), key=lambda t: t.cross_entropy)
        assert best.strength == scaled(STRENGTHS[bottom], len(block)) and best.cross_entropy == 1.0


def test_hopeless_directions_are_left() -> None:
    blocks = [(start,) for start in range(5, 12)]
    seen: set[int] = set()

    def score(layers: Any, strength: float) -> Trial:
        seen.add(layers[0])
        return Trial(tuple(layers), strength, 1.0 if layers[0] == 5 else 2.9)

    walk(blocks, score, 3.0)
    assert seen == {5, 6, 7}


def test_a_strength_per_layer_lowers_the_objective(lever: Any) -> None:
    """One of the two layers steers towards the word, the other away from it: the descent must tell them."""
    model, tokenizer, directions, word = lever
    mixed = directions.clone()
    mixed[2] = -mixed[2]
    forcing = TeacherForcing(model, tokenizer, PROMPTS[:2], [word * 5] * 2)
    start = Trial((1, 2), 0.3, forcing.cross_entropy({1: 0.3 * mixed[1], 2: 0.3 * mixed[2]}))
    found = descend(start, mixed, forcing, None)
    assert found is not None
    factors = dict(zip(found.layers, found.profile, strict=True))
    assert factors[1] > 3 * factors.get(2, 0.0)
    assert found.objective[-1] < found.objective[0]
    ended = Trial(found.layers, found.strength, 0.0, profile=found.profile)
    assert forcing.cross_entropy(ended.additions(mixed)) < start.cross_entropy


def test_harmless_answers_hold_the_descent_back(lever: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # A tiny model's cross-entropy moves little.
    monkeypatch.setattr(layer_profile, "_GAIN", 1e-5)
    monkeypatch.setattr(layer_profile, "_HARMLESS_WEIGHT", 1.0)
    model, tokenizer, directions, word = lever
    harmful = TeacherForcing(model, tokenizer, PROMPTS[:2], [word * 5] * 2)
    harmless = TeacherForcing(model, tokenizer, PROMPTS[2:], ["Because of how light scatters"] * 2)
    start = Trial((1, 2), 0.2, 0.0)
    free = descend(start, directions, harmful, None)
    held = descend(start, directions, harmful, harmless)
    assert free is not None
    total = 0.2 * 2 if held is None else held.strength * len(held.layers)
    assert total < free.strength * len(free.layers)


def test_nothing_is_gained_where_the_bottom_is_reached(lever: Any) -> None:
    model, tokenizer, directions, word = lever
    forcing = TeacherForcing(model, tokenizer, PROMPTS[:2], [word * 5] * 2)
    assert descend(Trial((2,), 0.5, 0.0), torch.zeros_like(directions), forcing, None) is None
