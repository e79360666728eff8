"""The model's name for clients, the same on both engines."""

from __future__ import annotations

import re

from inferaligner.storage.paths import expanded

FLAG = "--served-model-name"


def served_name(target: str) -> str:
    """The default name of a model: of a path its last part (without .gguf), else the target as given (a hub
    id, `builtin:NAME`)."""
    place = expanded(target)
    return re.sub(r"\.gguf$", "", place.resolve().name) if place.exists() else target
