"""The plan that an engine carries out: the gates, the vectors, and where they are added."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from inferaligner.errors import MismatchError, SteeringError
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GuidanceGate
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.method.positions import Positions as Positions
from inferaligner.models.anatomy import Anatomy

Mode = Literal["gate", "always", "never"]
"""`gate`: the gate decides. `always`: every row is steered (a control without a gate). `never`: decide and
report only (shadow mode)."""


@dataclass(frozen=True)
class SteeringPlan:
    """A gate, and the vectors that are added to the residual stream of open rows.

    Attributes:
        gate: the guidance gate.
        additions: for each steered decoder layer the vector α·θ_l `[width]` (float32).
        positions: which tokens of an open row are steered.
        monitor: opens rows later, while they are answered.
        end_gate: reads prompts that do not end as the chat template ends them, where the engine recognises
            them; without one, the guidance gate reads their last tokens.
    """

    gate: GuidanceGate
    additions: Mapping[int, Tensor]
    positions: Positions = "from_gate"
    monitor: AnswerMonitor | None = None
    end_gate: EndGate | None = None

    def __post_init__(self) -> None:
        if not self.additions:
            raise SteeringError("No decoder layer is steered: an open gate would change nothing.")
        for layer, vector in self.additions.items():
            if vector.ndim != 1 or not torch.isfinite(vector).all():
                raise SteeringError(f"The steering vector of layer {layer} is not a finite vector [width].")
        self._check_end_gate()
        if self.monitor is not None and self.monitor.layer > self.layers[0]:
            raise SteeringError(
                f"The answer monitor reads layer {self.monitor.layer}, above the first steered layer "
                f"{self.layers[0]}, so that token would pass it unsteered. Steer from layer "
                f"{self.monitor.layer} on, or switch the monitor off: aligner.apply(model, monitor=False)."
            )

    def _check_end_gate(self) -> None:
        if self.end_gate is not None and self.end_gate.gate.last_layer > self.gate.last_layer:
            raise SteeringError(
                f"The gate of begun answers reads layer {self.end_gate.gate.last_layer}, above the guidance "
                f"gate's last layer ({self.gate.last_layer}), so its decision would come too late."
            )

    @property
    def layers(self) -> tuple[int, ...]:
        """The steered layers, ascending."""
        return tuple(sorted(self.additions))

    @property
    def ends(self) -> EndGate:
        """The gate of prompts that do not end as the chat template ends them."""
        return EndGate.uncalibrated(self.gate) if self.end_gate is None else self.end_gate

    @property
    def gate_layers(self) -> tuple[int, ...]:
        """The layers that the two gates read, ascending; the guidance gate's last layer is the deepest."""
        return tuple(sorted({*self.gate.layers, *self.ends.gate.layers}))

    @property
    def one_pass(self) -> bool:
        """Whether the decision is known by the time the first steered layer writes its output."""
        return self.gate.last_layer <= self.layers[0]

    def check_fits(self, anatomy: Anatomy) -> None:
        """Raises `MismatchError` unless the model has this plan's width and layers."""
        widths = {int(self.gate.weights.shape[1])} | {
            int(vector.shape[0]) for vector in self.additions.values()
        }
        widths.add(int(self.ends.gate.weights.shape[1]))
        if self.monitor is not None:  # its layer is not above the first steered one
            widths.add(int(self.monitor.weights.shape[0]))
        deepest = max((*self.layers, self.gate.last_layer))
        if widths != {anatomy.width} or deepest >= anatomy.depth:
            raise MismatchError(
                f"The aligner has vectors of width {' and '.join(map(str, sorted(widths)))} up to layer "
                f"{deepest}, but the model has width {anatomy.width} and layers 0 to {anatomy.depth - 1}. "
                "It was fitted on another model; fit one for this model."
            )


@dataclass(frozen=True)
class GatePlan(SteeringPlan):
    """A plan with a gate and no steering vectors: open rows are refused (`refusal.py`) or only reported."""

    additions: Mapping[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.additions:
            raise SteeringError("A gate without steering vectors adds nothing; use a SteeringPlan to steer.")
        self._check_end_gate()
        if self.monitor is not None:
            raise SteeringError("A gate without steering vectors cannot have a monitor, which steers rows.")

    @property
    def one_pass(self) -> bool:
        return True
