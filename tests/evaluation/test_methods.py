"""Methods: the shared contract, and what each does to prompts, rows and answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch

from inferaligner.aligner import Aligner
from inferaligner.errors import InputError
from inferaligner.evaluation.methods.cast import Cast, best_threshold, first_component, similarity
from inferaligner.evaluation.methods.catalogue import ALL, check, choose, declared, lacking, make_methods
from inferaligner.evaluation.methods.method import MethodContext, Needs
from inferaligner.models.generation import generate_answers
from tests.support.tiny_aligner import PROMPTS
from tests.support.tiny_bench import tiny_bench

ASKED = PROMPTS[:4]


@pytest.fixture(scope="module")
def context() -> MethodContext:
    torch.set_num_threads(1)
    return tiny_bench()


@pytest.mark.parametrize("name", [name for name in ALL if name != "aligned"])
def test_the_contract(name: str, context: MethodContext) -> None:
    method = make_methods([name], context)[-1]
    assert method.name == name and method.title
    decisions = method.decide(ASKED)
    assert (decisions is None) == (method.gate is None)
    if decisions is not None:
        assert len(decisions) == len(ASKED)
        assert all(decision.open == (decision.score > 0) for decision in decisions)
    assert ASKED[0] in method.rewrite(ASKED[0])
    layers = context.target.model.model.layers
    with method.acting() as guard:
        if guard is not None:
            assert any(layer._forward_hooks for layer in layers)
    assert not any(layer._forward_hooks for layer in layers)


def test_gated_methods_of_one_aligner_share_their_decisions(context: MethodContext) -> None:
    ours, own, canned, paper = make_methods(["inferaligner", "own-vectors", "canned", "paper"], context)[1:]
    assert ours.gate == own.gate == canned.gate != paper.gate
    assert ours.decide(ASKED) == own.decide(ASKED)
    assert canned.canned and ours.canned is None


def test_acting_steers_every_row_and_the_vectors_matter(context: MethodContext) -> None:
    bare, ours, own = make_methods(["inferaligner", "own-vectors"], context)

    def tokens(method: object) -> list[tuple[int, ...]]:
        with method.acting():  # type: ignore[attr-defined]
            target = context.target
            found = generate_answers(target.model, target.tokenizer, ASKED, max_new_tokens=6)
            return [answer.tokens for answer in sorted(found, key=lambda answer: answer.row)]

    plain, steered, other = tokens(bare), tokens(ours), tokens(own)
    assert all(a != b for a, b in zip(plain, steered, strict=True))
    assert steered != other


def test_the_paper_has_its_constants(context: MethodContext) -> None:
    settings = make_methods(["paper"], context)[-1].settings()
    assert settings["strength"] == 4.0 and settings["positions"] == "all"
    assert settings["gate"] == "mean-difference" and len(settings["gate layers"]) == 1  # type: ignore[arg-type]


def test_other_models_answer_themselves(context: MethodContext) -> None:
    method = make_methods(["aligned=sibling"], context)[-1]
    assert method.model().spec == "sibling" and method.model() is method.model()


def test_templates(context: MethodContext, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Be good.\n{attack_prompt}\nBe very good.\n")
    method = make_methods([f"prompt={file}"], context)[-1]
    assert method.name == "prompt: mine"
    assert method.rewrite("Say {prompt} {}") == "Be good.\nSay {prompt} {}\nBe very good."
    file.write_text("no place")
    with pytest.raises(InputError, match="no place for the user's text"):
        make_methods([f"prompt={file}"], context)


def test_first_component_and_threshold() -> None:
    draw = torch.Generator().manual_seed(0)
    direction = torch.zeros(16)
    direction[3] = 1.0
    noise = torch.randn(40, 16, generator=draw)
    harmless, harmful = noise, noise + 4 * direction + 0.1 * torch.randn(40, 16, generator=draw)
    vector = first_component(harmful, harmless)
    assert float(vector @ direction) > 0.99
    assert float(first_component(harmless, harmful) @ direction) < -0.99
    scores = torch.tensor([0.9, 0.8, 0.7, 0.2, 0.1])
    f1, threshold = best_threshold(scores, torch.tensor([True, True, False, True, False]))
    assert f1 == pytest.approx(2 * 3 / (4 + 3)) and 0.1 < threshold < 0.2
    aligned = similarity(torch.stack([direction, -direction]), direction)
    assert aligned.tolist() == pytest.approx([1.0, 1.0], abs=1e-6)


def test_cast_separates_its_fitting_pairs(context: MethodContext) -> None:
    from inferaligner.evaluation.methods.cast import _pairs

    method = Cast(context)
    pairs = _pairs()
    opened = [[d.open for d in method.decide([p.text for p in side])] for side in zip(*pairs, strict=True)]  # type: ignore[union-attr]
    hits, alarms = sum(opened[0]), sum(opened[1])
    assert 2 * hits / (2 * hits + alarms + len(pairs) - hits) >= 0.66  # no worse than opening on everything


@pytest.mark.parametrize(
    ("specs", "word"),
    [
        (["nonsense"], "no method 'nonsense'"),
        (["always", "always"], "named twice"),
        (["prompt=/nowhere.txt"], "does not exist"),
        (["safety-sft=/nowhere"], "does not exist"),
        (["domain-chat"], "needs a model"),
    ],
)
def test_wrong_names_are_refused(specs: list[str], word: str) -> None:
    with pytest.raises(InputError, match=word):
        check(specs)


@pytest.mark.parametrize("name", sorted(declared()))
def test_a_declaration_is_complete(name: str) -> None:
    module = declared()[name]
    assert getattr(module, "NEEDS", "nothing") in get_args(Needs)
    assert (module.__doc__ or "").strip(), "the list of methods shows the first line"
    assert lacking(f"{name}=x", None) is None
    assert (name in ALL) != hasattr(module, "OPTION"), "`all` has every method that needs no option"


def test_a_method_named_beside_all_keeps_its_place(context: MethodContext) -> None:
    aligner = context.aligner
    assert aligner is not None
    specs, left_out = choose(["aligned=x", "domain-chat=y", "all", "cast"], aligner.artifact)
    assert specs == ["none", *ALL[1:-1], "aligned=x", "domain-chat=y"] and not left_out


def test_a_gate_alone_has_its_own_methods() -> None:
    artifact = gate_alone().artifact
    assert choose([], artifact) == (["none", "canned", "self-reminder"], {})
    specs, left_out = choose(["all"], artifact)
    assert specs == ["none", "canned", "self-reminder", "goal-priority"]
    assert set(left_out) == {"inferaligner", "paper", "always", "own-vectors", "cast", "aligned"}
    for name in left_out:
        with pytest.raises(InputError, match=r"gate alone|without one"):
            choose([name], artifact)
    assert choose(["aligned=x"], artifact) == (["none", "aligned=x"], {})
    assert choose([], None)[0] == ["none", "self-reminder"]
    with pytest.raises(InputError, match="needs an aligner"):
        choose(["canned"], None)


def test_a_gate_alone_declines_behind_the_gate(context: MethodContext) -> None:
    alone = MethodContext(context.target, gate_alone(), context.load)
    canned = make_methods(["canned"], alone)[-1]
    decisions = canned.decide(ASKED)
    assert decisions is not None and {d.open for d in decisions} == {True, False}
    gated = canned.gated()
    assert gated is not None
    with gated as guard:
        found = list(
            generate_answers(
                context.target.model,
                context.target.tokenizer,
                ASKED,
                max_new_tokens=40,
                decisions=lambda: guard.decisions,  # type: ignore[union-attr]
            )
        )
    for answer in found:
        assert answer.decision is not None
        assert answer.decision.open is decisions[answer.row].open
        assert (answer.text == canned.canned) is answer.decision.open


def gate_alone() -> Aligner:
    artifact = tiny_bench().aligner.artifact  # type: ignore[union-attr]
    return Aligner(
        replace(
            artifact,
            steering=artifact.steering.model_copy(update={"layers": ()}),
            provenance=artifact.provenance.model_copy(update={"aligned": None}),
        )
    )


@pytest.mark.parametrize("name", sorted(set(declared()) - {"none", "self-reminder", "goal-priority"}))
def test_a_missing_aligner_is_named(name: str, context: MethodContext) -> None:
    with pytest.raises(InputError, match="needs"):
        make_methods([name], MethodContext(context.target, None, context.load))
