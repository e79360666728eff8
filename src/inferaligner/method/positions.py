"""Which tokens are steered. The command line reads this file, so it does not import torch."""

from __future__ import annotations

from typing import Literal

Positions = Literal["from_gate", "all"]
"""`from_gate`: from the last prompt token onward. `all`: every token of the prompt and of the answer."""
