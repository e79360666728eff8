"""Which direction, layer and window the answer monitor has: cross-validated on the target's own answers.

The bare target answers harmful and harmless prompts. Only activations are kept, in memory, until the choice
is made: no text and no tokens (`answer_streams.py`). A candidate is better when the running score of more
answers to harmful prompts rises above the threshold that harmless answers stay below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from inferaligner.errors import CalibrationError
from inferaligner.fit.gate.builder import GateBuilder, MeanDifferenceGate, Moments, WhitenedGate
from inferaligner.fit.operating_point.threshold import threshold_for
from inferaligner.fit.samples import Sample, importance
from inferaligner.method.monitor import AnswerMonitor, running_means
from inferaligner.statistics.intervals import auroc

FOLDS = 5
WINDOWS = (4, 8, 16, 32)
BLOCK = 8
"""Tokens that are averaged into one example to fit weights on; single tokens mostly depend on the word."""

BUILDERS: tuple[GateBuilder, ...] = (MeanDifferenceGate(), WhitenedGate(0.3), WhitenedGate(0.6))

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelledAnswers:
    """One answer per sample: `streams[n]` is `[tokens, layers, width]`; an answer may be empty."""

    samples: tuple[Sample, ...]
    streams: tuple[Tensor, ...]
    layers: tuple[int, ...]

    @property
    def harmful(self) -> npt.NDArray[np.bool_]:
        """Whether the prompt was, `[answers]`."""
        return np.array([sample.harmful for sample in self.samples])


@dataclass(frozen=True)
class MonitorTrial:
    """A candidate and its held-out figures."""

    builder: GateBuilder
    layer: int
    window: int
    auroc: float  # of the answers' highest running scores, harmful prompts against all harmless ones
    true_open: float  # share of answers to harmful prompts that open at the false-open rate

    def row(self) -> dict[str, object]:
        """For tables and the artifact."""
        return {
            "kind": self.builder.name,
            "layer": self.layer,
            "window": self.window,
            "auroc": round(self.auroc, 4),
            "true_open": round(self.true_open, 4),
        }


def choose_monitor(
    answers: LabelledAnswers, max_false_open: float
) -> tuple[AnswerMonitor, list[MonitorTrial]]:
    """The best candidate, fitted on all answers with its bias at 0, and all that were tried, best first.

    Raises:
        CalibrationError: too few answers with text to hold some out.
    """
    trials = list(_trials(answers, max_false_open))
    # In steps of a hundredth: below that the share is noise. Among equals the shorter window opens earlier.
    trials.sort(key=lambda trial: (-round(trial.true_open, 2), -round(trial.auroc, 2), trial.window))
    best = trials[0]
    every = list(range(len(answers.samples)))
    weights, centre = _fit(best.builder, answers, answers.layers.index(best.layer), every)
    return AnswerMonitor(best.builder.name, best.layer, best.window, weights, centre, 0.0), trials


def highest(scores: Sequence[Tensor], window: int) -> Scores:
    """The highest running score of each answer `[answers]`, from token scores s `[tokens]`.

    0, the average token's, for an answer without tokens.
    """
    return np.array([float(running_means(s[None], window).max()) if len(s) else 0.0 for s in scores])


def _trials(answers: LabelledAnswers, max_false_open: float) -> Iterator[MonitorTrial]:
    folds = [sample.fold(FOLDS) for sample in answers.samples]
    labels = answers.harmful
    ordinary = np.array([sample.ordinary for sample in answers.samples])
    if not ordinary.any():
        ordinary = ~labels
    for place, layer in enumerate(answers.layers):
        for builder in BUILDERS:
            scores: list[Tensor] = [torch.empty(0)] * len(folds)
            for fold in set(folds):
                weights, centre = _fit(
                    builder, answers, place, [row for row, at in enumerate(folds) if at != fold]
                )
                for row in (row for row, at in enumerate(folds) if at == fold):
                    scores[row] = answers.streams[row][:, place].float() @ weights + centre
            for window in WINDOWS:
                tops = highest(scores, window)
                threshold = threshold_for({"answers": list(tops[ordinary])}, max_false_open)
                yield MonitorTrial(
                    builder, layer, window, auroc(tops, labels), float((tops[labels] > threshold).mean())
                )


def _fit(
    builder: GateBuilder, answers: LabelledAnswers, place: int, rows: Sequence[int]
) -> tuple[Tensor, float]:
    """Weights `[width]` and centre, in standard deviations of a block of a harmless answer."""
    harmful, harmless = _Blocks.of(answers, place, rows, True), _Blocks.of(answers, place, rows, False)
    # Centred, for the digits of the covariance; the direction does not depend on it.
    centre = harmless.means.mean(0)
    weights, _ = builder.fit(
        Moments.of(harmful.means - centre),
        Moments.of(harmless.means - centre, harmless.importance),
    )
    scores = harmless.means @ weights
    average = float((scores * harmless.importance).sum() / harmless.importance.sum())
    scale = float(scores.std()) or 1.0
    return weights / scale, -average / scale


@dataclass(frozen=True)
class _Blocks:
    """Means over `BLOCK` tokens of the answers of one class, `[blocks, width]`, and how much each counts."""

    means: Tensor
    importance: Tensor

    @classmethod
    def of(cls, answers: LabelledAnswers, place: int, rows: Sequence[int], harmful: bool) -> _Blocks:
        chosen = [r for r in rows if answers.samples[r].harmful == harmful and len(answers.streams[r])]
        if len(chosen) < 2:
            raise CalibrationError(
                f"The target answered only {len(chosen)} {'harmful' if harmful else 'harmless'} prompts with "
                "any text, which is too few to fit a monitor on. Give more prompts, or fit without one."
            )
        counts = torch.ones(len(chosen)) if harmful else _importance([answers.samples[r] for r in chosen])
        means, weights = [], []
        for row, count in zip(chosen, counts, strict=True):
            stream = answers.streams[row][:, place].float()
            blocks = [stream[at : at + BLOCK] for at in range(0, len(stream), BLOCK)]
            means += [block.mean(0) for block in blocks]
            # A long answer is one answer: its blocks share what the sample counts.
            weights += [count / len(blocks)] * len(blocks)
        counted = torch.stack(weights)
        return cls(torch.stack(means), counted / counted.mean())


def _importance(samples: Sequence[Sample]) -> Tensor:
    return torch.tensor(importance(samples))
