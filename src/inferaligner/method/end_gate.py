"""The gate of prompts that do not end as the chat template ends them.

The guidance gate was fitted on the template's own tokens. Behind a begun answer, and at the end of raw text,
another affine score reads the last token, with weights and biases that were fitted on such prompts. A begun
answer is judged by both gates: by the guidance gate where the template hands over to the assistant, and by
this one at its end; either opens. Raw text has only its end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from inferaligner.errors import ArtifactError
from inferaligner.method.gate import GateRead, GuidanceGate


@dataclass(frozen=True)
class EndGate:
    """The gate of a prompt's own end.

    Attributes:
        gate: reads the last tokens; its own bias is not used.
        begun: bias for begun answers.
        raw: bias for raw text.
        calibrated: whether the gate was fitted on such prompts.
    """

    gate: GuidanceGate
    begun: float
    raw: float
    calibrated: bool = True

    @classmethod
    def uncalibrated(cls, gate: GuidanceGate) -> EndGate:
        """The guidance gate at the prompt's last tokens, for aligners without an end gate.

        There it opens on most ordinary prompts, which errs on the safe side.
        """
        return cls(gate, gate.bias, gate.bias, calibrated=False)

    def check_fits(self, width: int, deepest: int) -> None:
        """Raises `ArtifactError` unless the width matches and no read lies above layer `deepest`."""
        if self.gate.weights.shape[1] != width or self.gate.last_layer > deepest:
            raise ArtifactError(
                f"The gate of begun answers has width {self.gate.weights.shape[1]} and reads up to layer "
                f"{self.gate.last_layer}; expected width {width} and no layer above {deepest}, where the "
                "guidance gate decides."
            )

    def settings(self) -> dict[str, Any]:
        """The entry in an artifact's JSON file; the weights are stored beside it."""
        return {
            "kind": self.gate.kind,
            "biases": {"begun": self.begun, "raw": self.raw},
            "reads": [{"layer": read.layer, "offset": read.offset} for read in self.gate.reads],
        }

    @classmethod
    def read(cls, settings: Mapping[str, Any] | None, weights: Tensor | None) -> EndGate | None:
        """Reads the entry of an artifact; None in artifacts without an end gate.

        Raises:
            ArtifactError, KeyError, TypeError: the settings are incomplete or unusable.
        """
        if settings is None:
            return None
        if weights is None:
            raise ArtifactError("The gate of begun answers has no weights; the artifact is damaged.")
        reads = tuple(GateRead(**read) for read in settings["reads"])
        begun, raw = (float(settings["biases"][kind]) for kind in ("begun", "raw"))
        if not (math.isfinite(begun) and math.isfinite(raw)):
            raise ArtifactError(f"A gate of begun answers has biases {begun} and {raw}; expected numbers.")
        return cls(GuidanceGate(settings["kind"], reads, weights, 0.0), begun, raw)
