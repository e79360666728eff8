"""Linear discriminant analysis with shrinkage (Fisher 1936; Friedman 1989 for the shrinkage).

    w = (Σ + λ(I - Σ))⁻¹ (mean(harmful) - mean(harmless))          on standardised features

Σ is the pooled within-class covariance. The mean difference alone points largely where *all* prompts vary
(topic, length, language); dividing by the covariance leaves what sets the classes apart. With more
features than prompts Σ is singular, so λ is not small.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class WhitenedGate:
    """`shrinkage` λ in (0, 1]: 1 forgets the covariance and leaves the standardised mean difference."""

    shrinkage: float = 0.4

    @property
    def name(self) -> str:
        return f"whitened-{self.shrinkage:g}"

    def fit(
        self, harmful: Tensor, harmless: Tensor, importance: Tensor | None = None
    ) -> tuple[Tensor, float]:
        shape = harmful.shape[1:]
        high, low = harmful.flatten(1).float(), harmless.flatten(1).float()
        counts = torch.ones(len(low)) if importance is None else importance.float()
        high_mean, low_mean = high.mean(0), (low * counts[:, None]).sum(0) / counts.sum()
        centred = torch.cat([high - high_mean, (low - low_mean) * counts.sqrt()[:, None]])
        total = len(high) + counts.sum()
        # The spread of all prompts together, so that a feature's unit does not depend on the class sizes.
        spread = (centred.square().sum(0) / total).sqrt().clamp_min(1e-6)
        within = centred / spread
        covariance = within.T @ within / total
        shrunk = (1 - self.shrinkage) * covariance
        shrunk.diagonal().add_(self.shrinkage)
        difference = (high_mean - low_mean) / spread
        weights = torch.linalg.solve(shrunk.double(), difference.double()) / spread.double()
        # One unit = the distance of the class means, so that fits on different folds can share a threshold.
        weights = weights / (weights @ (high_mean - low_mean).double())
        offset = -float(weights @ (high_mean + low_mean).double()) / 2
        return weights.float().reshape(shape), offset
