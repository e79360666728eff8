"""Which layers are steered, how strongly, and from where on."""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)


class SteeringSettings(BaseModel):
    """The steering x_l = x'_l + α·p_l·θ_l.

    Attributes:
        layers: the steered decoder layers l. Without layers nothing is steered: the artifact is a gate alone,
            fitted without an aligned model.
        strength: α.
        norm: whether θ_l is the SSV as extracted ("difference") or of length one ("unit"). Vectors that were
            learned from answers take the SSV's place.
        positions: whether steering begins at the prompt's last token or at its first.
        profile: a factor p_l for each of `layers`, in their order; None is 1 everywhere.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...]
    strength: float = Field(allow_inf_nan=False)
    norm: Literal["difference", "unit"] = "difference"
    positions: Literal["from_gate", "all"] = "from_gate"
    profile: tuple[float, ...] | None = None

    @model_validator(mode="after")
    def _one_factor_per_layer(self) -> SteeringSettings:
        if self.profile is not None and (
            len(self.profile) != len(self.layers) or not all(map(math.isfinite, self.profile))
        ):
            raise ValueError(f"expected a profile of {len(self.layers)} finite factors, one per layer")
        return self

    @model_serializer(mode="wrap")
    def _without_an_empty_profile(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Versions before there were profiles can then read artifacts without one; they refuse the others.
        fields: dict[str, Any] = handler(self)
        return fields if self.profile is not None else {n: v for n, v in fields.items() if n != "profile"}

    @property
    def strengths(self) -> dict[int, float]:
        """α·p_l for each steered layer, ascending."""
        factors = self.profile or (1.0,) * len(self.layers)
        return {layer: self.strength * p for layer, p in sorted(zip(self.layers, factors, strict=True))}
