"""One setting of the steering with its measurements, and the whole search for the best one."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from inferaligner.storage.strength_search_record import span


@dataclass(frozen=True)
class Trial:
    """α·p_l·θ_l is added at `layers`; p_l = 1 without a profile. None: not measured.

    Shares are of answers with every row steered: to harmful prompts, and to harmless prompts that open the
    gate wrongly.
    """

    layers: tuple[int, ...]
    strength: float
    cross_entropy: float  # of the aligned model's answers to harmful prompts, nats per token
    refusal: float | None = None
    compliance: float | None = None
    gibberish: float | None = None
    unended: float | None = None  # refusals that the length limit cut off although the guide's end
    profile: tuple[float, ...] | None = None
    drift: float | None = None  # nats per token that the bare model's own answers to harmless prompts lose
    harmless_refusal: float | None = None
    harmless_compliance: float | None = None
    harmless_gibberish: float | None = None

    @property
    def strengths(self) -> dict[int, float]:
        """α·p_l for each layer."""
        factors = self.profile or (1.0,) * len(self.layers)
        return {layer: self.strength * p for layer, p in zip(self.layers, factors, strict=True)}

    @property
    def total(self) -> float:
        """Sum of strengths over the layers: orders settings by weakness where no drift was measured."""
        return sum(map(abs, self.strengths.values()))

    def additions(self, directions: Tensor) -> dict[int, Tensor]:
        """α·p_l·θ_l `[width]` for each layer, from θ `[layers, width]`."""
        return {layer: alpha * directions[layer] for layer, alpha in self.strengths.items()}

    def words(self) -> str:
        """For progress lines."""
        return f"layers {span(self.layers)} × {self.strength:.3g}{' per layer' if self.profile else ''}"


@dataclass(frozen=True)
class Search:
    """All trials, the chosen one, and the unsteered target beside them."""

    chosen: Trial
    unsteered: float  # cross-entropy of the aligned model's answers under the bare target
    trials: tuple[Trial, ...]
    prompts: int
    generated: int
    gate_layer: int  # no candidate begins below it
    harmless: int = 0  # harmless prompts that were answered too
    harmless_unsteered: dict[str, float] | None = None  # outcomes of the bare target's answers to them
    below: tuple[Trial, ...] = ()  # of blocks that begin below the gate's last layer
    most: float = 0.0  # the highest merit of any finalist; the choice is within `tolerance` of it
    tolerance: float = 0.0
    margin: float = 1.0  # what the chosen strength is multiplied with for harder prompts
