"""Linear discriminant analysis with shrinkage (Fisher 1936; Friedman 1989 for the shrinkage).

    w = (Σ + λ(I - Σ))⁻¹ (mean(harmful) - mean(harmless))          on standardised features

Σ is the pooled within-class covariance. The mean difference alone points largely where *all* prompts vary
(topic, length, language, wrapper); dividing by the covariance leaves the directions that separate the
classes. With more features than prompts Σ is singular, so λ is not small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from inferaligner.fit.gate.moments import Moments


@dataclass(frozen=True)
class WhitenedGate:
    """`shrinkage` λ in (0, 1]: 1 ignores the covariance and leaves the standardised mean difference."""

    shrinkage: float = 0.4

    @property
    def name(self) -> str:
        return f"whitened-{self.shrinkage:g}"

    def fit(self, harmful: Moments, harmless: Moments) -> tuple[Tensor, float]:
        high, low = harmful.mean, harmless.mean
        covariance = (harmful.scatter + harmless.scatter) / (harmful.weight + harmless.weight)
        # The spread of all prompts together, so that a feature's unit does not depend on the class sizes.
        spread = covariance.diagonal().clamp_min(1e-12).sqrt()
        covariance *= (1 - self.shrinkage) / (spread[:, None] * spread)
        covariance.diagonal().add_(self.shrinkage)
        difference = (high - low) / spread.double()
        factor = torch.linalg.cholesky(covariance)
        solved = torch.cholesky_solve(difference.float()[:, None], factor)[:, 0]
        weights = solved.double() / spread.double()
        # One unit = the distance of the class means, so that fits on different folds can share a threshold.
        weights = weights / (weights @ (high - low))
        return weights.float(), -float(weights @ (high + low)) / 2
