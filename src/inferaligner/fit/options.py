"""What a fit is told: the two models, and the choices that the user made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from inferaligner.artifact import ModelRecord
from inferaligner.errors import InputError
from inferaligner.fit.gate.contrast_rule import CONTRAST_RULE, ContrastRule
from inferaligner.fit.operating_point.choice import OWN_LIMIT
from inferaligner.fit.transfer.linear_map import LayerMatch, MapKind
from inferaligner.method.activations import Recorder
from inferaligner.models.fingerprint import fingerprint_model, fingerprint_tokenizer
from inferaligner.models.weight_digest import weight_digest
from inferaligner.steering.plan import Positions

SHIPPED_LIMIT = 0.065
"""The same for the contrast set's ordinary prompts. They are picked to be harder than traffic: at 6.5 % of
them, 2 % or less of each kind of public benign prompts open. Chosen on the public sets of the README."""


Carry = Literal["answers", "map"]
"""How a guide reaches the target: through what it says, or through a map of its vectors. A sibling of the
target's own width and depth needs neither, and may guide through what it says."""

MONITOR_TOKENS = 64
"""How much of each answer the monitor is fitted and calibrated on."""


@dataclass(frozen=True)
class FitModel:
    """A model with its tokenizer, and what the user called it. `recorder` stands in for the model where its
    activations are recorded."""

    model: Any
    tokenizer: Any
    spec: str
    recorder: Recorder | None = None

    def record(self) -> ModelRecord:
        return ModelRecord(
            spec=self.spec,
            model=fingerprint_model(self.model),
            tokenizer=fingerprint_tokenizer(self.tokenizer),
            weights=weight_digest(self.model),
        )


@dataclass(frozen=True)
class FitOptions:
    """What the user fixed; None is chosen from data. `paper` takes the paper's own choices for the rest."""

    max_false_open: float | None = None
    confidence: float = 0.95
    contrast_rule: ContrastRule = CONTRAST_RULE
    gate_layer: int | None = None
    steer_layers: tuple[int, ...] | None = None
    strength: float | None = None
    positions: Positions | None = None
    paper: bool = False
    system: str | None = None
    carry: Carry | None = None
    match_layers: LayerMatch = "best"
    map_kind: MapKind | None = None
    accept_poor_map: bool = False
    monitor: bool = False
    monitor_tokens: int = MONITOR_TOKENS

    @property
    def steers(self) -> bool:
        """Whether anything was fixed that only steering needs."""
        return (self.steer_layers, self.strength, self.positions) != (None, None, None)

    def __post_init__(self) -> None:
        if self.max_false_open is not None and not 0 < self.max_false_open < 1:
            raise InputError(
                f"--max-false-open is {self.max_false_open}; expected a share between 0 and 1, such as 0.01."
            )
        if not 0 < self.confidence < 1:
            raise InputError(
                f"--confidence is {self.confidence}; expected a share between 0 and 1, such as 0.95."
            )
        if self.strength is not None and self.strength <= 0:
            raise InputError(f"--strength is {self.strength}; expected a positive number.")
        if self.monitor_tokens < 1:
            raise InputError(f"--monitor-tokens is {self.monitor_tokens}; expected a positive number.")

    def limits(self, own_traffic: bool) -> tuple[float, float]:
        """The largest share that may open: of the user's own traffic, and of the labelled prompts' ordinary
        traffic. With traffic of their own, what the user asks for is said of that."""
        own = OWN_LIMIT if self.max_false_open is None else self.max_false_open
        if own_traffic or self.max_false_open is None:
            return own, max(own, SHIPPED_LIMIT)
        return own, own
