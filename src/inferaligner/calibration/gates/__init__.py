"""Ways of making a gate from activations.

A gate builder is one file here with one class, registered in `GATES` under its name:

- `fit(harmful, harmless, importance)` takes the features of the places to read, `[prompts, reads, width]`
  float32, and returns `(weights [reads, width], offset)`: the raw score is Σ w·a + offset, larger = more
  harmful. `importance` says how much each harmless prompt counts (mean 1); a builder may ignore it.

The operating point is chosen afterwards (`operating_point.py`), so a builder's offset only has to make scores
of differently fitted gates comparable: 0 half-way between the two class means.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from inferaligner.calibration.gates.mean_difference import MeanDifferenceGate
from inferaligner.calibration.gates.whitened import WhitenedGate


class GateBuilder(Protocol):
    """Makes an affine score from the activations of two classes."""

    @property
    def name(self) -> str:
        """As it is stored in artifacts and shown in tables."""

    def fit(
        self, harmful: Tensor, harmless: Tensor, importance: Tensor | None = None
    ) -> tuple[Tensor, float]:
        """Weights `[reads, width]` and offset from features `[prompts, reads, width]`."""


__all__ = ["GateBuilder", "MeanDifferenceGate", "WhitenedGate"]
