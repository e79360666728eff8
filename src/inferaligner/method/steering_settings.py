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

from inferaligner.method.positions import Positions


class SteeringSettings(BaseModel):
    """x_l = x'_l + α·p_l·θ_l for l in `layers`; θ_l is the SSV as extracted ("difference") or of length one.

    Where vectors were learned from answers, θ_l is those instead.

    `profile` has a factor p_l for each of `layers` in their order, None for 1 everywhere: it shares out what
    `strength` α scales. Without layers nothing is steered: the artifact is a gate alone, fitted without an
    aligned model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...]
    strength: float = Field(allow_inf_nan=False)
    norm: Literal["difference", "unit"] = "difference"
    positions: Positions = "from_gate"
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
        # Versions that know of no profile read artifacts without one, and refuse the others.
        told: dict[str, Any] = handler(self)
        return told if self.profile is not None else {n: v for n, v in told.items() if n != "profile"}

    @property
    def strengths(self) -> dict[int, float]:
        """α·p_l for each steered layer, ascending."""
        factors = self.profile or (1.0,) * len(self.layers)
        return {layer: self.strength * p for layer, p in sorted(zip(self.layers, factors, strict=True))}
