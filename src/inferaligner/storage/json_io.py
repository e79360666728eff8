"""Standard JSON: NaN and infinity, which JSON does not have, are written as null."""

from __future__ import annotations

import json
import math
from typing import Any


def plain(value: Any) -> Any:
    """The value as JSON gives it back: string keys, lists for tuples, None for values that are not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def dump(value: Any, *, indent: int | None = None, ascii_only: bool = False) -> str:
    """The value as a JSON document; on one line unless `indent` is given."""
    return json.dumps(plain(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)
