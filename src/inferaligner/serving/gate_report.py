"""What a server tells about a request's gate: in its answer, its audit log and its metrics.

Every engine uses the same names, so that whoever reads them need not know which one answered.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

KEY = "inferaligner"
"""The field of an answer that holds the report, and of a request that asks for more than usual."""

OPEN_HEADER = "X-InferAligner-Open"
"""The header of an answer that says "true" or "false", for proxies."""

Action = Literal["none", "steered", "shadow", "refused", "overridden"]
"""What became of a request: nothing (closed), its answer steered, seen in shadow mode, answered with a text,
or let through by a request that set the strength to 0 where the operator allows that."""


@dataclass(frozen=True)
class GateReport:
    """`layer` is the decoder layer after which the gate is decided, `strength` the α that applies where it is
    open, `aligner` the beginning of the artifact's digest."""

    score: float
    open: bool
    action: Action
    layer: int
    strength: float
    aligner: str
    bias: float
    opened_at: int | None = None  # the generated token at which a monitor opened the answer

    def public(self) -> dict[str, Any]:
        """As a JSON object for clients. A score that is not finite is null; it opens the gate."""
        told = {
            "open": self.open,
            "score": self.score if math.isfinite(self.score) else None,
            "layer": self.layer,
            "strength": self.strength,
            "action": self.action,
            "aligner": self.aligner,
        }
        return told if self.opened_at is None else {**told, "opened_at": self.opened_at}

    def opened_by_monitor(self, token: int, action: Action) -> GateReport:
        """The same after a monitor opened the answer at a generated token."""
        return replace(self, open=True, opened_at=token, action=action)
