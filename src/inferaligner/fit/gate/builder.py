"""Ways of making a gate from activations.

A gate builder is one file here with one class, registered in `GATES` under its name:

- `fit(harmful, harmless)` takes the moments of the two classes' features (the activations at the places to
  read, one after the other) and returns `(weights [features], offset)`: the raw score is Σ w·x + offset,
  larger = more harmful. How much each prompt counts is in the moments already.

The operating point is chosen afterwards (`operating_point.py`), so a builder's offset only has to make scores
of differently fitted gates comparable: 0 half-way between the two class means.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from inferaligner.fit.gate.mean_difference import MeanDifferenceGate
from inferaligner.fit.gate.moments import Moments
from inferaligner.fit.gate.whitened import WhitenedGate


class GateBuilder(Protocol):
    """Makes an affine score from what is known of two classes."""

    @property
    def name(self) -> str:
        """As it is stored in artifacts and shown in tables."""

    @property
    def shrinkage(self) -> float:
        """How much of the covariance it forgets, 0 to 1."""

    def fit(self, harmful: Moments, harmless: Moments) -> tuple[Tensor, float]:
        """Weights `[features]` (float32) and offset."""


__all__ = ["GateBuilder", "MeanDifferenceGate", "Moments", "WhitenedGate"]
