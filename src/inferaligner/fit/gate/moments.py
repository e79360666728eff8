"""Weighted sums of a class's features: all that a linear gate needs to know of it.

Moments of parts add up, so that cross-validation goes through the prompts once: what is fitted without a fold
is the sum over the other folds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Of prompts with features x: how much they count together, Σ c·x (float64) and Σ c·x xᵀ (float32).

    The features should be centred (on anything near their mean), or the covariance loses its digits.
    """

    weight: float
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor, importance: Tensor | None = None) -> Moments:
        """Of `features` [prompts, ...]; `importance` [prompts] says how much each counts, 1 by default."""
        rows = features.flatten(1).float()
        counts = torch.ones(len(rows)) if importance is None else importance.float()
        weighed = rows * counts[:, None]
        return cls(float(counts.double().sum()), weighed.double().sum(0), weighed.T @ rows)

    @classmethod
    def sum(cls, parts: Iterable[Moments]) -> Moments:
        """Of all the prompts of the parts together."""
        first, *others = parts
        weight, total, outer = first.weight, first.total.clone(), first.outer.clone()
        for part in others:
            weight += part.weight
            total += part.total
            outer += part.outer
        return cls(weight, total, outer)

    def scaled(self, factor: float) -> Moments:
        """The same prompts, each counting `factor` times as much."""
        return Moments(self.weight * factor, self.total * factor, self.outer * factor)

    @property
    def mean(self) -> Tensor:
        """`[features]`, float64."""
        return self.total / self.weight

    @property
    def scatter(self) -> Tensor:
        """Σ c·(x - mean)(x - mean)ᵀ `[features, features]`, float32."""
        mean = self.mean.float()
        return torch.addr(self.outer, mean, mean, alpha=-self.weight)
