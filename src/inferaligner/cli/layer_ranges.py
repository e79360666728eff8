"""Layer numbers as text: `12-18`, `12,13,20`, or both."""

from __future__ import annotations

import re
from collections.abc import Sequence

from inferaligner.errors import InputError

_PART = re.compile(r"\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?")


def read_layers(text: str, *, option: str = "--steer-layers") -> tuple[int, ...]:
    """Reads layer numbers, ascending and each once; a range includes both ends.

    Raises:
        InputError: the text is no such list.
    """
    layers: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if first > last:
            raise InputError(
                f"{option} {text!r} is not understood at {part!r}; expected layer numbers from 0 and "
                "ranges, such as 12-18 or 12,13,20."
            )
        layers.update(range(first, last + 1))
    return tuple(sorted(layers))


def written(layers: Sequence[int]) -> str:
    """Writes ascending layer numbers: runs of three or more as ranges."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    parts = [f"{run[0]}-{run[-1]}" if len(run) > 2 else ",".join(str(layer) for layer in run) for run in runs]
    return ",".join(parts)
