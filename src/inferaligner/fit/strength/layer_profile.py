"""A strength for each layer, by gradient on the few scalars.

From the best flat setting, the factors p_l of its layers descend

    CE(aligned model's answers to harmful prompts) + weight · CE(bare model's answers to harmless prompts),

both teacher-forced under the steered target. The second term keeps the answers to prompts that open the gate
wrongly from becoming unlikely for a small gain. Weights, vectors and layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from inferaligner.fit.strength.teacher_forcing import TeacherForcing
from inferaligner.fit.strength.trial import Trial

STEPS = 10
# The first step moves the scalar with the steepest slope by this share of the flat strength, the others in
# proportion. A step that does not lower the objective is taken back and halved.
_RATE = 0.3
_SMALLEST = 0.05
# A step that gains less than this share of the objective ends the descent.
_GAIN = 0.005
_HARMLESS_WEIGHT = 0.1
_LEAST = 0.05  # of the strongest layer; weaker ones are left out


@dataclass(frozen=True)
class Descent:
    """Layers, mean strength and profile that the descent ended with; the objective by step, first to last."""

    layers: tuple[int, ...]
    strength: float
    profile: tuple[float, ...]
    objective: tuple[float, ...]


def descend(
    start: Trial,
    directions: Tensor,
    harmful: TeacherForcing,
    harmless: TeacherForcing | None,
    *,
    layers: tuple[int, ...] | None = None,
    steps: int = STEPS,
    report: Callable[[str], None] | None = None,
) -> Descent | None:
    """Descends from the setting `start`.

    Args:
        directions: θ, `[layers, width]`.
        harmful, harmless: the two terms of the objective.
        layers: the layers that get a factor; None takes those of `start`.
        report: called with a sentence after each step.

    Returns:
        None if the model gives no gradients, or if nothing is gained.
    """
    places = layers or start.layers
    here = torch.tensor([start.strengths.get(layer, 0.0) for layer in places])
    objective: list[float] = []
    rate, value, slope = _RATE, float("inf"), torch.zeros_like(here)
    best, trial = here, here
    for _ in range(steps):
        try:
            loss, gradient = _objective(trial, places, directions, harmful, harmless)
        except (RuntimeError, NotImplementedError):
            return None  # quantised weights without a backward pass
        if report is not None:
            report(f"per layer: objective {loss:.3f}")
        if loss < value and bool(torch.isfinite(gradient).all()):
            gained = value - loss
            value, slope, best = loss, gradient, trial
            objective.append(value)
            if gained < _GAIN * value:
                break
        else:
            rate /= 2
            if rate < _SMALLEST:
                break
        steepest = float(slope.abs().max())
        if steepest == 0.0:
            break
        trial = (best - rate * start.strength * slope / steepest).clamp(min=0.0)
    if not objective or objective[-1] >= objective[0] * (1 - _GAIN):
        return None
    return _descent(places, best, objective)


def _objective(
    alphas: Tensor,
    places: tuple[int, ...],
    directions: Tensor,
    harmful: TeacherForcing,
    harmless: TeacherForcing | None,
) -> tuple[float, Tensor]:
    """Its value, and its gradient `[layers]`."""
    scalars = alphas.clone().requires_grad_(True)

    def part(forcing: TeacherForcing, weight: float) -> float:
        additions = {layer: scalars[at] * directions[layer] for at, layer in enumerate(places)}
        loss = weight * forcing.loss(additions)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    # One after the other: the graph of the first is gone before the second is built.
    value = part(harmful, 1.0) + (0.0 if harmless is None else part(harmless, _HARMLESS_WEIGHT))
    assert scalars.grad is not None
    return value, scalars.grad


def _descent(places: tuple[int, ...], alphas: Tensor, objective: list[float]) -> Descent:
    kept = {
        layer: alpha
        for layer, alpha in zip(places, alphas.tolist(), strict=True)
        if alpha > _LEAST * float(alphas.max())
    }
    mean = sum(kept.values()) / len(kept)
    return Descent(tuple(kept), mean, tuple(round(a / mean, 4) for a in kept.values()), tuple(objective))
