"""The guidance gate: is this prompt harmful? (equation 3 of the paper)

A gate is one affine score of residual-stream activations at fixed places in the prompt:

    score(P) = Σ_r  w_r · a_{layer_r}(token T - offset_r)  +  b,        open when score > 0

T is the last token of the rendered chat prompt. The paper's gate is the case of one read at T with the
unit SRV as its weight and b = -(mean projection of the extraction prompts). Whitening, several layers or
several positions only change the numbers; engines always evaluate this one sum. A larger bias is
stricter: more prompts open the gate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inferaligner.errors import ArtifactError, CalibrationError
from inferaligner.method.decision import Decision, opens


@dataclass(frozen=True, order=True)
class GateRead:
    """A place that a gate reads: after decoder layer `layer`, `offset` tokens before the last one."""

    layer: int
    offset: int = 0


@dataclass(frozen=True)
class GuidanceGate:
    """The weights and the bias of the affine score.

    Attributes:
        kind: how the gate was fitted.
        reads: the places that are read.
        weights: `[reads, width]` (float32, CPU).
        bias: b; a larger bias is stricter.
    """

    kind: str
    reads: tuple[GateRead, ...]
    weights: Tensor
    bias: float

    def __post_init__(self) -> None:
        if not self.reads or self.weights.ndim != 2 or self.weights.shape[0] != len(self.reads):
            raise ArtifactError(
                f"A gate with {len(self.reads)} reads needs weights [reads, width], "
                f"but they have shape {tuple(self.weights.shape)}."
            )
        if len(set(self.reads)) != len(self.reads):
            raise ArtifactError(f"The gate reads one place twice: {self.reads}.")
        if any(read.layer < 0 or read.offset < 0 for read in self.reads):
            raise ArtifactError(f"Gate layers and offsets count from 0 upward; the reads are {self.reads}.")
        if not torch.isfinite(self.weights).all() or self.bias != self.bias or abs(self.bias) == float("inf"):
            raise ArtifactError("The gate holds NaN or infinite numbers, so it cannot decide. Fit it again.")

    @property
    def layers(self) -> tuple[int, ...]:
        """The decoder layers that are read, ascending."""
        return tuple(sorted({read.layer for read in self.reads}))

    @property
    def offsets(self) -> tuple[int, ...]:
        """The token offsets that are read, ascending; (0,) is the last prompt token alone."""
        return tuple(sorted({read.offset for read in self.reads}))

    @property
    def last_layer(self) -> int:
        """The layer after which the decision is known."""
        return max(read.layer for read in self.reads)

    def scores(self, activations: Tensor, layers: Sequence[int], offsets: Sequence[int]) -> Tensor:
        """Scores recorded activations.

        Args:
            activations: `[prompts, layers, offsets, width]`.
            layers: decoder layers of the second axis.
            offsets: token offsets of the third axis.

        Returns:
            Scores `[prompts]` (float32), the bias included.

        Raises:
            CalibrationError: a place that the gate reads was not recorded.
        """
        total = torch.full((activations.shape[0],), self.bias, dtype=torch.float32)
        layer_at, offset_at = list(layers), list(offsets)
        for read, weight in zip(self.reads, self.weights, strict=True):
            if read.layer not in layer_at or read.offset not in offset_at:
                raise CalibrationError(
                    f"The gate reads layer {read.layer} at offset {read.offset}, but only layers {layer_at} "
                    f"at offsets {offset_at} were recorded."
                )
            place = activations[:, layer_at.index(read.layer), offset_at.index(read.offset)]
            total += place.float() @ weight
        return total

    def decide(self, scores: Tensor) -> list[Decision]:
        """One decision per score `[rows]`."""
        return [Decision(score=score, open=opens(score)) for score in scores.tolist()]

    def with_bias(self, bias: float) -> GuidanceGate:
        """The same gate at another operating point."""
        return replace(self, bias=bias)
