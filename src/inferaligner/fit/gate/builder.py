"""The interface of a gate builder, and the builders that exist. The package's docstring has the contract."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from inferaligner.fit.gate.mean_difference import MeanDifferenceGate
from inferaligner.fit.gate.moments import Moments
from inferaligner.fit.gate.whitened import WhitenedGate


class GateBuilder(Protocol):
    """Makes an affine score from the moments of two classes."""

    @property
    def name(self) -> str:
        """The name in artifacts and tables."""

    @property
    def shrinkage(self) -> float:
        """Share of the covariance that is replaced by the identity, 0 to 1."""

    def fit(self, harmful: Moments, harmless: Moments) -> tuple[Tensor, float]:
        """Weights `[features]` (float32) and offset. The moments know how much each prompt counts."""


__all__ = ["GateBuilder", "MeanDifferenceGate", "Moments", "WhitenedGate"]
