"""Every gate builder keeps the contract; the choice between candidates is held-out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from inferaligner.fit.gate.builder import GateBuilder, MeanDifferenceGate, Moments, WhitenedGate
from inferaligner.fit.gate.gate_choice import (
    GateCrossValidation,
    build_gate,
    choose_gate,
    gate_layers,
    in_order,
    paper_gate,
    try_gate,
)
from inferaligner.fit.samples import Sample
from inferaligner.method.activations import Activations
from inferaligner.method.gate import GateRead
from inferaligner.statistics.intervals import auroc

BUILDERS: list[GateBuilder] = [MeanDifferenceGate(), WhitenedGate(0.2), WhitenedGate(1.0)]


def labelled(count: int = 200, layers: int = 4, width: int = 12, offsets: int = 2, seed: int = 0):  # type: ignore[no-untyped-def]
    """Layer 2 knows the class, in a direction of little variance; a nuisance direction varies a lot."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn((count, layers, offsets, width), generator=generator)
    harmful = torch.arange(count) % 2 == 0
    values[:, :, :, 0] += 30 * torch.randn((count, 1, 1), generator=generator)
    values[:, 2, :, 1] = 0.3 * values[:, 2, :, 1] + harmful[:, None] * 1.0
    # The nuisance leaks a little of the class, enough to lead the mean difference astray.
    values[:, 2, :, 0] += harmful[:, None] * 3.0
    samples = [
        Sample(f"p{n}", bool(h), f"topic {n // 2}", "pairs" if h else "everyday")
        for n, h in enumerate(harmful)
    ]
    return Activations(values, tuple(range(layers)), tuple(range(offsets))), samples


def fitted(builder: GateBuilder, harmful: Tensor, harmless: Tensor, counts: Tensor | None = None) -> Any:
    """Weights `[reads, width]` and offset."""
    weights, offset = builder.fit(Moments.of(harmful), Moments.of(harmless, counts))
    return weights.reshape(harmful.shape[1:]), offset


@pytest.mark.parametrize("builder", BUILDERS, ids=lambda b: b.name)
def test_scores_separate_and_zero_is_between_the_means(builder: GateBuilder) -> None:
    torch.manual_seed(0)
    harmful, harmless = torch.randn(80, 2, 6) + 2, torch.randn(80, 2, 6)
    weights, offset = fitted(builder, harmful, harmless)
    assert weights.shape == (2, 6) and weights.dtype == torch.float32
    high = (harmful * weights).sum((1, 2)) + offset
    low = (harmless * weights).sum((1, 2)) + offset
    assert high.mean() > 0 > low.mean()
    assert torch.isclose(high.mean(), -low.mean(), rtol=1e-3)


def test_the_mean_difference_gate_is_the_papers_projection() -> None:
    torch.manual_seed(0)
    harmful, harmless = torch.randn(50, 1, 6) + 1, torch.randn(50, 1, 6)
    weights, _ = fitted(MeanDifferenceGate(), harmful, harmless)
    expected = harmful.mean(0) - harmless.mean(0)
    assert torch.allclose(weights, expected / expected.norm(), atol=1e-6)


def test_full_shrinkage_forgets_the_covariance() -> None:
    torch.manual_seed(0)
    harmful, harmless = torch.randn(50, 1, 6) + 1, torch.randn(50, 1, 6)
    weights, _ = fitted(WhitenedGate(1.0), harmful, harmless)
    difference = (harmful.mean(0) - harmless.mean(0)).flatten()
    spread = torch.cat([harmful - harmful.mean(0), harmless - harmless.mean(0)]).std(0).flatten()
    expected = difference / spread**2
    assert torch.allclose(weights.flatten() / weights.norm(), expected / expected.norm(), atol=1e-5)


def test_whitening_finds_what_the_mean_difference_misses() -> None:
    activations, samples = labelled()
    plain = try_gate(MeanDifferenceGate(), GateCrossValidation((GateRead(2),), activations, samples), 0.05)
    whitened = try_gate(WhitenedGate(0.1), GateCrossValidation((GateRead(2),), activations, samples), 0.05)
    assert whitened.auroc > plain.auroc + 0.2
    assert whitened.true_open > plain.true_open


def test_importance_counts_like_copies_of_a_prompt() -> None:
    torch.manual_seed(0)
    harmful, harmless = torch.randn(40, 1, 5) + 1, torch.randn(30, 1, 5)
    counts = torch.tensor([3.0] * 10 + [1.0] * 20)
    weighed, _ = fitted(WhitenedGate(0.3), harmful, harmless, counts)
    copied, _ = fitted(WhitenedGate(0.3), harmful, torch.cat([harmless, harmless[:10], harmless[:10]]))
    assert torch.allclose(weighed, copied, rtol=1e-4, atol=1e-6)


def test_prompts_that_count_more_are_kept_closed_better() -> None:
    """A direction that tells twins apart and one that tells ordinary prompts apart: importance decides."""
    torch.manual_seed(0)
    harmful, harmless = torch.randn(400, 1, 2) * 0.5, torch.randn(400, 1, 2) * 0.5
    harmful += 1.0
    harmless[:200, 0, 0] += 1.0  # ordinary: differs in the second feature alone
    harmless[200:, 0, 1] += 1.0  # twins: in the first alone
    counts = torch.tensor([1.8] * 200 + [0.2] * 200)
    alike = fitted(WhitenedGate(0.1), harmful, harmless)[0].flatten()
    weighed = fitted(WhitenedGate(0.1), harmful, harmless, counts)[0].flatten()
    assert abs(alike[1] / alike[0] - 1) < 0.3
    assert weighed[1] / weighed[0] > 2


def test_moments_of_parts_add_up() -> None:
    torch.manual_seed(0)
    features, counts = torch.randn(50, 2, 4) + 3, torch.rand(50)
    whole = Moments.of(features, counts)
    parts = Moments.sum([Moments.of(features[:20], counts[:20]), Moments.of(features[20:], counts[20:])])
    flat = features.flatten(1)
    mean = (flat * counts[:, None]).sum(0) / counts.sum()
    centred = flat - mean
    for moments in (whole, parts):
        assert torch.allclose(moments.mean.float(), mean, atol=1e-5)
        assert torch.allclose(moments.scatter, (centred * counts[:, None]).T @ centred, atol=1e-3)


def test_a_gate_fitted_fold_by_fold_is_the_one_fitted_at_once() -> None:
    activations, samples = labelled()
    evidence = GateCrossValidation((GateRead(1), GateRead(2, 1)), activations, samples)
    held = torch.tensor([sample.fold(5) == 3 for sample in samples])
    harmful = torch.tensor([sample.harmful for sample in samples])
    features = torch.stack([activations.values[:, 1, 0], activations.values[:, 2, 1]], 1)
    builder = WhitenedGate(0.3)
    weights, offset = fitted(builder, features[~held & harmful], features[~held & ~harmful])
    expected = (features[held] * weights).sum((1, 2)) + offset
    scores = torch.tensor(evidence.scores(builder))[held].float()
    assert torch.allclose(scores, expected, rtol=1e-3, atol=1e-3)
    built, bias = evidence.gate(builder)
    together, all_offset = fitted(builder, features[harmful], features[~harmful])
    assert torch.allclose(built, together, rtol=1e-3, atol=1e-5) and abs(bias - all_offset) < 1e-3


def test_a_wrapper_that_opens_the_gate_by_itself_counts_for_nothing() -> None:
    """Layer 0 knows attack wrappers, layer 1 harm."""
    generator = torch.Generator().manual_seed(0)
    samples, values = [], torch.randn((1200, 2, 1, 3), generator=generator)
    for n in range(1200):
        harmful, attack = n % 2 == 0, n % 4 < 2
        samples.append(Sample(f"p{n}", harmful, f"t{n}", "everyday", attack, attack))
        values[n, 0, 0, 0] += 9.0 * attack + 1.0 * harmful
        values[n, 1, 0, 0] += 2.4 * harmful
    chosen, tried = choose_gate(Activations(values, (0, 1), (0,)), samples, max_false_open=0.05)
    alone = next(t for t in tried if t.builder.name == "mean-difference" and t.reads == (GateRead(0),))
    assert GateRead(1) in chosen.reads
    assert alone.attacks is not None and alone.attacks > 0.95
    assert alone.attacks_harmless is not None and alone.attacks_harmless > 0.95
    assert chosen.quality > alone.quality


def test_among_candidates_that_are_alike_the_best_separation_is_taken() -> None:
    activations, samples = labelled()
    trial = try_gate(WhitenedGate(0.1), GateCrossValidation((GateRead(2),), activations, samples), 0.05)

    def like(true_open: float, separation: float) -> Any:
        return replace(trial, direct=None, true_open=true_open, error=0.02, separation=separation)

    best, alike, told_apart, worse = like(0.9, 0.7), like(0.885, 0.8), like(0.89, 0.9), like(0.87, 0.99)
    assert in_order([worse, best, alike, told_apart]) == [told_apart, alike, best, worse]


def test_among_candidates_that_are_alike_the_one_that_shrinks_most_is_taken() -> None:
    activations, samples = labelled()
    trial = try_gate(WhitenedGate(0.1), GateCrossValidation((GateRead(2),), activations, samples), 0.05)
    alike = [replace(trial, builder=WhitenedGate(s), separation=0.9 - s, error=0.02) for s in (0.1, 0.5, 0.3)]
    assert [t.builder.shrinkage for t in in_order(alike)] == [0.5, 0.3, 0.1]


def test_the_error_of_a_trial_is_that_of_its_shares() -> None:
    activations, samples = labelled(count=400)
    trial = try_gate(MeanDifferenceGate(), GateCrossValidation((GateRead(0),), activations, samples), 0.3)
    # Without attacks the quality is the open rate of the 200 harmful prompts.
    assert trial.quality == trial.direct
    assert trial.error == pytest.approx((trial.quality * (1 - trial.quality) / 200) ** 0.5)
    labels = [sample.harmful for sample in samples]
    assert trial.separation == pytest.approx(auroc(trial.scores, labels))


def test_the_informative_layer_is_chosen() -> None:
    activations, samples = labelled()
    chosen, tried = choose_gate(activations, samples, max_false_open=0.05)
    assert 2 in {read.layer for read in chosen.reads}
    assert chosen is tried[0]
    assert len({(t.builder.name, t.reads) for t in tried}) == len(tried)


def test_a_fixed_layer_is_kept() -> None:
    activations, samples = labelled()
    chosen, _ = choose_gate(activations, samples, max_false_open=0.05, layer=3)
    assert {read.layer for read in chosen.reads} == {3}


def test_the_built_gate_opens_on_no_more_than_the_promised_share() -> None:
    activations, samples = labelled(count=600)
    chosen, _ = choose_gate(activations, samples, max_false_open=0.05)
    gate = build_gate(chosen, activations, samples)
    fresh, labels = labelled(count=2000, seed=1)
    opened = gate.scores(fresh.values, fresh.layers, fresh.offsets) > 0
    harmless = torch.tensor([not s.harmful for s in labels])
    # Another draw of the same kind: the share wavers around the limit.
    assert float(opened[harmless].double().mean()) < 0.08
    assert float(opened[~harmless].double().mean()) > 0.5


def test_held_out_scores_know_nothing_of_their_own_row() -> None:
    """On labels without meaning, in-sample scores separate and out-of-fold scores must not."""
    torch.manual_seed(0)
    values = torch.randn(120, 1, 1, 60)
    samples = [Sample(f"p{n}", n % 2 == 0, f"t{n}", "everyday") for n in range(120)]
    evidence = GateCrossValidation((GateRead(0),), Activations(values, (0,), (0,)), samples)
    trial = try_gate(WhitenedGate(0.1), evidence, 0.05)
    assert 0.3 < trial.auroc < 0.7


def test_the_papers_gate_takes_the_most_accurate_layer_and_the_mean_projection() -> None:
    torch.manual_seed(0)
    values = torch.randn(100, 3, 1, 8)
    harmful = torch.arange(100) % 2 == 0
    values[harmful, 1] += 1.0
    samples = [Sample(f"p{n}", bool(h), f"t{n}", "pairs") for n, h in enumerate(harmful)]
    gate = paper_gate(Activations(values, (0, 1, 2), (0,)), samples)
    assert gate.reads == (GateRead(1),)
    assert torch.isclose(gate.weights.norm(), torch.tensor(1.0))
    scores = gate.scores(values, (0, 1, 2), (0,))
    assert abs(float(scores.mean())) < 1e-5


def test_default_layers_leave_room_for_steering() -> None:
    assert gate_layers(30)[0] == 6 and gate_layers(30)[-1] == 16
    assert gate_layers(2) == (0, 1)
