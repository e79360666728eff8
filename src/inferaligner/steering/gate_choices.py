"""The values that a gate policy takes, and how users write them. Imports no library, so that the command line
can show its help at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

OnOpen = Literal["steer", "refuse"]
"""What an open gate does: add the steering vectors, or answer with a given text."""

AllowedPrompts = Literal["chat", "any"]
"""The prompts that a server accepts. `chat`: those that end as the chat template ends them, and begun answers
where the aligner has a gate for them. `any`: raw text too."""

REFUSAL = "I'm sorry, but I can't help with that."
"""The text of a refusal, unless the user gives another."""


@dataclass(frozen=True)
class Spelling:
    """How users write the choices, for errors: as arguments in Python, or as flags on the command line."""

    refuse: str
    refusal: str
    no_monitor: str


ARGUMENTS = Spelling('on_open="refuse"', "refusal", "monitor=False")
FLAGS = Spelling("--on-open refuse", "--refusal", "--no-monitor")
