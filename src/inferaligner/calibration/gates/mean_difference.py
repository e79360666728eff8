"""The paper's gate: project on the unit mean difference (equation 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inferaligner.vectors import unit


@dataclass(frozen=True)
class MeanDifferenceGate:
    """w = v / ||v|| for each read; every prompt counts alike."""

    name: str = "mean-difference"

    def fit(
        self, harmful: Tensor, harmless: Tensor, importance: Tensor | None = None
    ) -> tuple[Tensor, float]:
        high, low = harmful.double().mean(0), harmless.double().mean(0)
        weights = unit(high - low)
        return weights.float(), -float((weights * (high + low)).sum() / 2)
