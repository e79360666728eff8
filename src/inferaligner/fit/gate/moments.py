"""Weighted sums of a class's features: a linear gate is fitted on these alone.

Moments of parts add up, so cross-validation goes through the prompts once: a fit without one fold takes
the sum of the other folds.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Σ c, Σ c·x (float64) and Σ c·x xᵀ (float32) over prompts with features x that count c each.

    The features should be centred (on anything near their mean), or the covariance loses its digits.
    """

    weight: float
    total: Tensor
    outer: Tensor

    @classmethod
    def of(cls, features: Tensor, importance: Tensor | None = None) -> Moments:
        """Moments of `features` `[prompts, ...]`; each counts 1, or its entry of `importance` `[prompts]`."""
        rows = features.flatten(1).float()
        counts = torch.ones(len(rows)) if importance is None else importance.float()
        weighed = rows * counts[:, None]
        return cls(float(counts.double().sum()), weighed.double().sum(0), weighed.T @ rows)

    @classmethod
    def sum(cls, parts: Iterable[Moments]) -> Moments:
        """Moments of the prompts of all parts together."""
        first, *others = parts
        weight, total, outer = first.weight, first.total.clone(), first.outer.clone()
        for part in others:
            weight += part.weight
            total += part.total
            outer += part.outer
        return cls(weight, total, outer)

    @property
    def mean(self) -> Tensor:
        """`[features]`, float64."""
        return self.total / self.weight

    @property
    def scatter(self) -> Tensor:
        """Σ c·(x - mean)(x - mean)ᵀ `[features, features]`, float32."""
        mean = self.mean.float()
        return torch.addr(self.outer, mean, mean, alpha=-self.weight)
