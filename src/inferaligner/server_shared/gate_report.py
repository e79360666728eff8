"""The report of a gate's decision in responses, audit log and metrics, the same for every engine."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

KEY = "inferaligner"
"""The field of a response that holds the report, and of a request that holds this server's options."""

OPEN_HEADER = "X-InferAligner-Open"
"""The header of a response that is "true" or "false", for proxies."""

Action = Literal["none", "steered", "shadow", "refused", "overridden"]
"""What the server did: "none", the gate is closed; "steered"; "shadow", open but not steered; "refused",
answered with a text; "overridden", open but the request set the strength to 0 (an option of the operator)."""


@dataclass(frozen=True)
class GateReport:
    """The decision on one prompt.

    Attributes:
        score: of the gate.
        open: whether the gate opened, or a monitor later.
        action: what the server did.
        layer: decoder layer after which the gate decides.
        strength: α that applies to an open prompt.
        aligner: first 12 characters of the artifact's digest.
        bias: of the gate, part of the score.
        opened_at: number of the generated token at which a monitor opened the answer.
    """

    score: float
    open: bool
    action: Action
    layer: int
    strength: float
    aligner: str
    bias: float
    opened_at: int | None = None

    def public(self) -> dict[str, Any]:
        """The report as a JSON object for clients. A score that is not finite is null; it opens the gate."""
        fields = {
            "open": self.open,
            "score": self.score if math.isfinite(self.score) else None,
            "layer": self.layer,
            "strength": self.strength,
            "action": self.action,
            "aligner": self.aligner,
        }
        return fields if self.opened_at is None else {**fields, "opened_at": self.opened_at}

    def opened_by_monitor(self, token: int, action: Action) -> GateReport:
        """The report after a monitor opened the answer at a generated token."""
        return replace(self, open=True, opened_at=token, action=action)
