"""The state of a guard that its hooks read and write: the present batch, and the pass that is running."""

from __future__ import annotations

from dataclasses import dataclass

from inferaligner.steering.batch_state import Pass, PromptScope


@dataclass
class GuardState:
    """The state that a guard shares with its hooks.

    Attributes:
        scope: the latest batch of prompts; None before the first.
        now: the forward pass that is running; None between passes.
    """

    scope: PromptScope | None = None
    now: Pass | None = None
