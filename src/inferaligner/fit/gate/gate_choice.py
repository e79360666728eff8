"""Which gate: its builder, and the layers and token positions that it reads, chosen on held-out prompts.

Every candidate is cross-validated by content over the fitting prompts. The scores that decide (and that set
the threshold later) never come from a gate that has seen the prompt or its twin. A candidate is better when
more harmful prompts open it at the allowed false-open rate, and when jailbreak wrappers open it only around
harmful contents. These shares depend on one threshold and a few hundred prompts, so candidates within one
standard error of the best count as equal. Of these, the one with the most shrinkage is taken: prompts to come
differ more from the fitting prompts than those differ from each other (the one-standard-error rule of Breiman
et al. 1984). Among equal shrinkages, the best separation at every threshold decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inferaligner.errors import CalibrationError
from inferaligner.fit.gate.builder import GateBuilder, MeanDifferenceGate, Moments, WhitenedGate
from inferaligner.fit.operating_point.threshold import threshold_for
from inferaligner.fit.samples import Sample, importance
from inferaligner.method.activations import Activations
from inferaligner.method.decision import opens
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.statistics.intervals import auroc

FOLDS = 5
SHRINKAGES = (0.1, 0.3, 0.5)

# No gate above this share of the depth by default: the layers above it must still be able to turn the
# answer, and one pass needs every read below the first steered layer.
DEEPEST_SHARE = 0.55

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GateTrial:
    """A candidate and its held-out figures; `scores` `[prompts]` are out-of-fold.

    Open rates are at the threshold that keeps the allowed false-open rate; None without such prompts.
    """

    builder: GateBuilder
    reads: tuple[GateRead, ...]
    scores: Scores
    auroc: float  # harmful against every harmless prompt
    auroc_twins: float | None  # plain harmful against their harmless twins
    true_open: float  # share of all harmful prompts that open
    threshold: float
    direct: float | None = None  # harmful prompts as they are
    attacks: float | None = None  # harmful prompts in jailbreak wrappers
    attacks_harmless: float | None = None  # ordinary prompts in the same wrappers
    error: float = 0.0  # standard error of `quality`
    separation: float = 0.0  # mean AUROC of direct harmful against ordinary prompts, and of both in attacks

    @property
    def quality(self) -> float:
        """Mean of two shares: direct harmful prompts that open, and attacks that open *for their content*.

        A gate that only recognises the wrapper opens on harmless prompts in it just as often."""
        if self.direct is None or self.attacks is None or self.attacks_harmless is None:
            return self.true_open
        return (self.direct + self.attacks - self.attacks_harmless) / 2

    @property
    def family(self) -> str:
        """The group of candidates that it belongs to: a table shows the best of each."""
        layers, offsets = {read.layer for read in self.reads}, {read.offset for read in self.reads}
        if len(self.reads) == 1:
            builder = "mean difference" if isinstance(self.builder, MeanDifferenceGate) else "whitened"
            return f"one layer, {builder}"
        if len(layers) == 1:
            return "one layer, several positions"
        return "several layers" + (", several positions" if len(offsets) > 1 else "")

    def row(self) -> dict[str, object]:
        """For tables and the artifact."""
        figures = {
            "auroc": self.auroc,
            "auroc_twins": self.auroc_twins,
            "true_open": self.true_open,
            "direct": self.direct,
            "attacks": self.attacks,
            "attacks_harmless": self.attacks_harmless,
            "separation": self.separation,
        }
        return {
            "family": self.family,
            "kind": self.builder.name,
            "reads": [[read.layer, read.offset] for read in self.reads],
            **{name: None if value is None else round(value, 4) for name, value in figures.items()},
        }


class GateCrossValidation:
    """Centred features and their moments by fold, shared by all candidates that read the same places."""

    def __init__(
        self, reads: Sequence[GateRead], activations: Activations, samples: Sequence[Sample]
    ) -> None:
        self.reads = tuple(reads)
        self.samples = samples
        raw = _features(activations, reads).flatten(1)
        self.centre = raw.mean(0)
        self.features = raw - self.centre
        self.harmful = torch.tensor([sample.harmful for sample in samples])
        self.folds = torch.tensor([sample.fold(FOLDS) for sample in samples])
        self._counts = torch.tensor(importance(samples))
        self._moments: dict[tuple[int, bool], Moments] = {}
        for fold in range(FOLDS):
            for harmful in (True, False):
                rows = (self.folds == fold) & (self.harmful == harmful)
                if rows.any():
                    self._moments[fold, harmful] = Moments.of(self.features[rows], self._counts[rows])

    def fit(self, builder: GateBuilder, without: int | None = None) -> tuple[Tensor, float]:
        """A gate's weights `[features]` and offset for centred features, from all folds but one.

        Raises:
            CalibrationError: the other folds hold no prompt of a class.
        """
        classes = []
        for harmful in (True, False):
            parts = [m for (fold, side), m in self._moments.items() if side == harmful and fold != without]
            if not parts:
                raise CalibrationError(
                    "Too few prompts to hold some out; give at least a dozen of each class."
                )
            classes.append(Moments.sum(parts))
        return builder.fit(*classes)

    def scores(self, builder: GateBuilder) -> Scores:
        """Out-of-fold scores `[prompts]`."""
        scores = torch.zeros(len(self.samples), dtype=torch.float64)
        for fold in range(FOLDS):
            held = self.folds == fold
            if held.any():
                weights, offset = self.fit(builder, fold)
                scores[held] = (self.features[held] @ weights).double() + offset
        values: Scores = scores.numpy()
        return values

    def gate(self, builder: GateBuilder) -> tuple[Tensor, float]:
        """Weights `[reads, width]` and offset for activations as they are, from all prompts."""
        weights, offset = self.fit(builder)
        offset -= float(weights.double() @ self.centre.double())
        return weights.reshape(len(self.reads), -1), offset


def try_gate(builder: GateBuilder, evidence: GateCrossValidation, max_false_open: float) -> GateTrial:
    """Cross-validates one candidate."""
    samples, labels = evidence.samples, evidence.harmful.numpy()
    values = evidence.scores(builder)
    threshold = threshold_for({"benign": _benign(values, samples)}, max_false_open)

    def opens(rows: Sequence[bool]) -> float | None:
        return float((values[np.array(rows)] > threshold).mean()) if any(rows) else None

    twins = np.array([s.group == "pairs" and not s.wrapped for s in samples])
    kinds = [
        [s.harmful and not s.wrapped for s in samples],
        [s.harmful and s.attack for s in samples],
        [s.attack and s.sort == "ordinary" for s in samples],
    ]
    shares = of_direct, of_attacks, of_their_frames = [opens(rows) for rows in kinds]
    variance = sum(p * (1 - p) / sum(rows) for p, rows in zip(shares, kinds, strict=True) if p is not None)
    direct = np.array([(s.harmful or s.ordinary) and not s.wrapped for s in samples])
    attacks = np.array([s.attack and s.sort in ("harmful", "ordinary") for s in samples])
    areas = [_area(values, labels, rows) for rows in (direct, attacks)]
    known = [area for area in areas if area is not None]
    area = auroc(values, labels)
    return GateTrial(
        builder,
        evidence.reads,
        values,
        area,
        _area(values, labels, twins),
        float((values[labels] > threshold).mean()),
        threshold,
        of_direct,
        of_attacks,
        of_their_frames,
        error=variance**0.5 / (1 if None in shares else 2),
        separation=sum(known) / len(known) if known else area,
    )


def choose_gate(
    activations: Activations,
    samples: Sequence[Sample],
    *,
    max_false_open: float,
    layer: int | None = None,
    advance: Callable[[int], None] | None = None,
) -> tuple[GateTrial, list[GateTrial]]:
    """Cross-validates all candidates.

    Args:
        activations: of `samples`, at every layer and token position that a candidate may read.
        max_false_open: the largest share of the ordinary prompts that may open.
        layer: compare only gates that read this layer.
        advance: called with 1 after each candidate; `number_of_trials` says how many there are at most.

    Returns:
        The best candidate, and all candidates, best first.
    """
    trials: list[GateTrial] = []

    def attempt(reads: tuple[GateRead, ...], *builders: GateBuilder) -> None:
        evidence = GateCrossValidation(reads, activations, samples)
        for builder in builders:
            trials.append(try_gate(builder, evidence, max_false_open))
            if advance is not None:
                advance(1)

    allowed = list(activations.layers) if layer is None else [layer]
    for at in allowed:
        attempt((GateRead(at),), MeanDifferenceGate(), WhitenedGate(SHRINKAGES[0]))
    # Combinations grow around the layers that are best alone; trying them everywhere would cost minutes.
    ranked = in_order([t for t in trials if t.builder.name != "mean-difference"])
    for reads in _combinations([t.reads[0].layer for t in ranked], allowed, activations.offsets):
        attempt(reads, *map(WhitenedGate, SHRINKAGES))
    trials = in_order(trials)
    return trials[0], trials


def in_order(trials: Sequence[GateTrial]) -> list[GateTrial]:
    """Best first: the candidates equal to the best, by shrinkage and then by separation; then the others, by
    quality."""
    best = max(trials, key=_quality)
    alike = [trial for trial in trials if trial.quality >= best.quality - best.error]
    rest = [trial for trial in trials if trial.quality < best.quality - best.error]
    alike.sort(key=lambda trial: (trial.builder.shrinkage, trial.separation), reverse=True)
    return [*alike, *sorted(rest, key=_quality, reverse=True)]


def gate_layers(depth: int) -> tuple[int, ...]:
    """The decoder layers that are tried by default. The lowest fifth holds too little of the meaning."""
    return tuple(range(depth // 5, max(depth // 5 + 1, round(DEEPEST_SHARE * depth) + 1)))


def number_of_trials(activations: Activations, layer: int | None = None) -> int:
    """The most candidates that `choose_gate` will try; for progress bars."""
    allowed = list(activations.layers) if layer is None else [layer]
    combinations = list(_combinations(list(allowed), allowed, activations.offsets))
    return 2 * len(allowed) + len(SHRINKAGES) * len(combinations)


def build_gate(trial: GateTrial, activations: Activations, samples: Sequence[Sample]) -> GuidanceGate:
    """The chosen gate, fitted on all prompts; its bias is minus the trial's held-out threshold."""
    weights, offset = GateCrossValidation(trial.reads, activations, samples).gate(trial.builder)
    # The unit of scores is the standard deviation of harmless prompts.
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
        features = _features(activations, (GateRead(at),)).flatten(1)
        weights, _ = builder.fit(Moments.of(features[harmful]), Moments.of(features[~harmful]))
        scores = features.double() @ weights.double()
        bias = -float(scores.mean())
        accuracy = float((opens(scores + bias) == harmful).double().mean())
        if best is None or accuracy > best[0]:
            best = (accuracy, GuidanceGate(builder.name, (GateRead(at),), weights[None], bias))
    assert best is not None
    return best[1]


def _area(values: Scores, labels: npt.NDArray[np.bool_], rows: npt.NDArray[np.bool_]) -> float | None:
    return auroc(values[rows], labels[rows]) if 0 < labels[rows].sum() < rows.sum() else None


def _scale(trial: GateTrial, samples: Sequence[Sample]) -> float:
    return float(trial.scores[[not sample.harmful for sample in samples]].std()) or 1.0


def _quality(trial: GateTrial) -> tuple[float, float]:
    return trial.quality, trial.separation


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
                yield tuple(GateRead(at, offset) for at in spread for offset in offsets)


def _features(activations: Activations, reads: Sequence[GateRead]) -> Tensor:
    """`[prompts, reads, width]` float32."""
    layers, offsets = activations.layers, activations.offsets
    columns = [activations.values[:, layers.index(r.layer), offsets.index(r.offset)].float() for r in reads]
    return torch.stack(columns, dim=1)


def _benign(scores: Scores, samples: Sequence[Sample]) -> list[float]:
    """Scores of ordinary traffic; of all harmless prompts where none is labelled so."""
    ordinary = [score for score, sample in zip(scores, samples, strict=True) if sample.ordinary]
    return ordinary or [score for score, sample in zip(scores, samples, strict=True) if not sample.harmful]
