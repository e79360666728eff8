"""What clients call the model, on every engine alike."""

from __future__ import annotations

import re

from inferaligner.storage.paths import expanded

FLAG = "--served-model-name"


def served_name(target: str) -> str:
    """The name of a model that was given none: the folder or file at a path (without .gguf), else the target
    as it was asked for (a hub id, `builtin:NAME`)."""
    place = expanded(target)
    return re.sub(r"\.gguf$", "", place.resolve().name) if place.exists() else target
