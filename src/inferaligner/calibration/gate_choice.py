"""Which gate: how it is made and which places it reads, chosen on held-out prompts.

Every candidate is cross-validated by content over the fitting prompts: the scores that decide (and that
the threshold is later taken from) never come from a gate that has seen the prompt or its twin. A candidate is
better when more harmful prompts open it at the promised false-open rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inferaligner.activations import Activations
from inferaligner.calibration.gates import GateBuilder, MeanDifferenceGate, WhitenedGate
from inferaligner.calibration.operating_point import threshold_for
from inferaligner.calibration.samples import Sample, importance
from inferaligner.errors import CalibrationError
from inferaligner.gate import GateRead, GuidanceGate
from inferaligner.statistics import auroc

FOLDS = 5
SHRINKAGES = (0.3, 0.6)

# No gate above this share of the depth by default: the layers above it must still be able to turn the
# answer, and one pass needs every read below the first steered layer.
DEEPEST_SHARE = 0.55

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GateTrial:
    """A candidate and its held-out figures; `scores[prompts]` are out-of-fold."""

    builder: GateBuilder
    reads: tuple[GateRead, ...]
    scores: Scores
    auroc: float  # harmful against every harmless prompt
    auroc_twins: float | None  # plain harmful against their harmless twins, where there are any
    true_open: float  # share of harmful prompts that open at the promised false-open rate
    threshold: float

    def row(self) -> dict[str, object]:
        """For tables and the artifact."""
        return {
            "kind": self.builder.name,
            "reads": [[read.layer, read.offset] for read in self.reads],
            "auroc": round(self.auroc, 4),
            "auroc_twins": None if self.auroc_twins is None else round(self.auroc_twins, 4),
            "true_open": round(self.true_open, 4),
        }


def try_gate(
    builder: GateBuilder,
    reads: Sequence[GateRead],
    activations: Activations,
    samples: Sequence[Sample],
    max_false_open: float,
) -> GateTrial:
    """Cross-validates one candidate."""
    features = _features(activations, reads)
    harmful = torch.tensor([sample.harmful for sample in samples])
    folds = torch.tensor([sample.fold(FOLDS) for sample in samples])
    scores = torch.zeros(len(samples), dtype=torch.float64)
    for fold in range(FOLDS):
        held = folds == fold
        if not held.any():
            continue
        if not (harmful & ~held).any() or not (~harmful & ~held).any():
            raise CalibrationError("Too few prompts to hold some out; give at least a dozen of each class.")
        scores[held] = _apply(features[held], *_fit(builder, features, samples, ~held))
    values: Scores = scores.numpy()
    labels = harmful.numpy()
    threshold = threshold_for({"benign": _benign(values, samples)}, max_false_open)
    twins = np.array([s.group == "pairs" and not s.wrapped for s in samples])
    return GateTrial(
        builder,
        tuple(reads),
        values,
        auroc(values, labels),
        auroc(values[twins], labels[twins]) if 0 < labels[twins].sum() < twins.sum() else None,
        float((values[labels] > threshold).mean()),
        threshold,
    )


def choose_gate(
    activations: Activations,
    samples: Sequence[Sample],
    *,
    max_false_open: float,
    layer: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[GateTrial, list[GateTrial]]:
    """The best candidate, and all that were tried, best first. `layer`: only gates that read this one."""
    trials: list[GateTrial] = []

    def attempt(builder: GateBuilder, reads: tuple[GateRead, ...]) -> None:
        trials.append(try_gate(builder, reads, activations, samples, max_false_open))
        if advance is not None:
            advance(1)

    allowed = list(activations.layers) if layer is None else [layer]
    for at in allowed:
        attempt(MeanDifferenceGate(), (GateRead(at),))
        attempt(WhitenedGate(SHRINKAGES[0]), (GateRead(at),))
    # Combinations grow around the layers that are best alone; trying them everywhere would cost minutes.
    ranked = sorted((t for t in trials if t.builder.name != "mean-difference"), key=_quality, reverse=True)
    for reads in _combinations([t.reads[0].layer for t in ranked], allowed, activations.offsets):
        for shrinkage in SHRINKAGES:
            attempt(WhitenedGate(shrinkage), reads)
    trials.sort(key=_quality, reverse=True)
    return trials[0], trials


def gate_layers(depth: int) -> tuple[int, ...]:
    """The decoder layers that are tried by default: the lowest know too little of the prompt's meaning."""
    return tuple(range(depth // 5, max(depth // 5 + 1, round(DEEPEST_SHARE * depth) + 1)))


def number_of_trials(activations: Activations, layer: int | None = None) -> int:
    """How many candidates `choose_gate` will try at most; for progress bars."""
    allowed = list(activations.layers) if layer is None else [layer]
    combinations = list(_combinations(list(allowed), allowed, activations.offsets))
    return 2 * len(allowed) + len(SHRINKAGES) * len(combinations)


def build_gate(trial: GateTrial, activations: Activations, samples: Sequence[Sample]) -> GuidanceGate:
    """The chosen gate, fitted on all prompts; its bias is minus the trial's held-out threshold."""
    features = _features(activations, trial.reads)
    weights, offset = _fit(trial.builder, features, samples, torch.ones(len(samples), dtype=torch.bool))
    # Scores are told in standard deviations of harmless prompts, so that "1.3" means something.
    scale = _scale(trial, samples)
    return GuidanceGate(trial.builder.name, trial.reads, weights / scale, (offset - trial.threshold) / scale)


def out_of_fold(trial: GateTrial, samples: Sequence[Sample]) -> list[float]:
    """The trial's scores `[prompts]` on the built gate's scale: positive above the trial's threshold."""
    return [float(score) for score in (trial.scores - trial.threshold) / _scale(trial, samples)]


def paper_gate(activations: Activations, samples: Sequence[Sample], layer: int | None = None) -> GuidanceGate:
    """The paper's: unit SRV of the most accurate layer, bias = minus the mean projection of all prompts."""
    builder = MeanDifferenceGate()
    harmful = torch.tensor([sample.harmful for sample in samples])
    best: tuple[float, GuidanceGate] | None = None
    for at in activations.layers if layer is None else (layer,):
        features = _features(activations, (GateRead(at),))
        weights, _ = builder.fit(features[harmful], features[~harmful])
        scores = _apply(features, weights, 0.0)
        bias = -float(scores.mean())
        accuracy = float(((scores + bias > 0) == harmful).double().mean())
        if best is None or accuracy > best[0]:
            best = (accuracy, GuidanceGate(builder.name, (GateRead(at),), weights, bias))
    assert best is not None
    return best[1]


def _scale(trial: GateTrial, samples: Sequence[Sample]) -> float:
    return float(trial.scores[[not sample.harmful for sample in samples]].std()) or 1.0


def _quality(trial: GateTrial) -> tuple[float, float]:
    # In steps of a hundredth: below that the share is noise and the ranking over all thresholds says more.
    return round(trial.true_open, 2), trial.auroc


def _combinations(
    ranked: list[int], allowed: Sequence[int], offsets: Sequence[int]
) -> Iterator[tuple[GateRead, ...]]:
    """Several positions at one layer; several layers at the last token; and both."""
    best = ranked[:3]
    gap = max(1, len(allowed) // 5)
    for layer in best:
        if len(offsets) > 1:
            yield tuple(GateRead(layer, offset) for offset in offsets)
    for layer in best[:2]:
        spread = [at for at in (layer - 2 * gap, layer - gap, layer) if at in allowed]
        if len(spread) > 1:
            yield tuple(GateRead(at) for at in spread)
            if len(offsets) > 1:
                # The two ends of the template's suffix, at every layer: the middle adds little to them.
                yield tuple(GateRead(at, offset) for at in spread for offset in (offsets[0], offsets[-1]))


def _features(activations: Activations, reads: Sequence[GateRead]) -> Tensor:
    """`[prompts, reads, width]` float32."""
    layers, offsets = activations.layers, activations.offsets
    columns = [activations.values[:, layers.index(r.layer), offsets.index(r.offset)].float() for r in reads]
    return torch.stack(columns, dim=1)


def _fit(
    builder: GateBuilder, features: Tensor, samples: Sequence[Sample], chosen: Tensor
) -> tuple[Tensor, float]:
    """A builder's gate from the `chosen` [prompts] of the samples."""
    harmful = torch.tensor([sample.harmful for sample in samples])
    harmless = chosen & ~harmful
    counts = importance([samples[row] for row in harmless.nonzero().flatten().tolist()])
    return builder.fit(features[chosen & harmful], features[harmless], torch.tensor(counts))


def _apply(features: Tensor, weights: Tensor, offset: float) -> Tensor:
    return (features.double() * weights.double()).sum((1, 2)) + offset


def _benign(scores: Scores, samples: Sequence[Sample]) -> list[float]:
    """Scores of ordinary traffic; with the user's own prompts, whatever is harmless stands for it."""
    ordinary = [score for score, sample in zip(scores, samples, strict=True) if sample.ordinary]
    return ordinary or [score for score, sample in zip(scores, samples, strict=True) if not sample.harmful]
