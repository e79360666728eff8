"""Which tokens are steered. A file of its own, so that the command line can read it without importing torch."""

from __future__ import annotations

from typing import Literal

Positions = Literal["from_gate", "all"]
"""`from_gate`: from the last prompt token onward. `all`: every token of the prompt and of the answer."""
