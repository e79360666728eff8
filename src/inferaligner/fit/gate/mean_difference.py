"""The paper's gate: project on the unit mean difference (equation 3)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inferaligner.fit.gate.moments import Moments
from inferaligner.method.vectors import unit


@dataclass(frozen=True)
class MeanDifferenceGate:
    """w = v / ||v||, with v over all places to read together."""

    name: str = "mean-difference"
    shrinkage: float = 1.0

    def fit(self, harmful: Moments, harmless: Moments) -> tuple[Tensor, float]:
        high, low = harmful.mean, harmless.mean
        weights = unit(high - low)
        return weights.float(), -float((weights * (high + low)).sum() / 2)
