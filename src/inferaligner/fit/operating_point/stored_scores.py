"""Gate scores from files: the output of `inferaligner score`, or a server's log with the same field."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path

from inferaligner.errors import InputError


def read_scores(file: str | Path, bias: float, scored_bias: float | None = None) -> list[float]:
    """Reads the `score` of every line (JSON objects; other fields are ignored).

    Args:
        bias: the gate's present bias. The scores are returned as a gate with this bias gives them.
        scored_bias: the bias that the scores include. A line's own field `bias` wins over it; None: `bias`.

    Raises:
        InputError: the file is missing, unreadable or empty, or a line has no finite score. Only blank lines
            are skipped: a lost line would change the bound.
    """
    place, scores = Path(file), list[float]()
    try:
        with place.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    scores.append(_score(line, f"{place}, line {number}", bias, scored_bias))
    except OSError as error:
        raise InputError(
            f"{place} cannot be read ({error.strerror}); expected a file of JSON lines."
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{place} is not UTF-8; expected JSON lines with a field 'score'.") from None
    if not scores:
        raise InputError(
            f"{place} is empty; expected JSON lines with a field 'score', as `score` writes them."
        )
    return scores


def check_age(file: str | Path, moved: str) -> None:
    """Raises `InputError` if the file was last written before `moved` (ISO 8601), when the bias was last set.

    Its scores then include an earlier bias, and a threshold taken from them would bound nothing.
    """
    place = Path(file)
    since = datetime.datetime.fromisoformat(moved)
    if place.is_file() and place.stat().st_mtime < since.timestamp():
        raise InputError(
            f"{place} was written before the gate got its present bias ({moved}), so its scores include an "
            "earlier one. Score the prompts again, or give the earlier bias with `scored_bias` "
            "(`inferaligner inspect DIR` shows the history)."
        )


def _score(line: str, place: str, bias: float, scored_bias: float | None) -> float:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{place}: broken JSON ({error}); expected an object with a field 'score'."
        ) from None
    if not isinstance(row, dict) or "score" not in row:
        raise InputError(
            f"{place} has no field 'score'; expected lines such as "
            '{"prompt": "…", "score": -1.3, "open": false}.'
        )
    score = _number(row["score"], place, "score")
    if "bias" in row:
        scored_bias = _number(row["bias"], place, "bias")
    return score if scored_bias is None else score + bias - scored_bias


def _number(value: object, place: str, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        shown = "null, which stands for NaN" if value is None else f"{value!r:.40}"
        raise InputError(f"{place}: the {field} is {shown}; expected a number.")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise InputError(
            f"{place}: the {field} is {number}; expected a finite number. Remove or correct the line."
        )
    return number
