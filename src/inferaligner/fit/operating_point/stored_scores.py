"""Gate scores from files: what `inferaligner score` writes, or a server's log with the same field."""

from __future__ import annotations

import datetime
import json
import math
from pathlib import Path

from inferaligner.errors import InputError


def read_scores(file: str | Path, bias: float, scored_bias: float | None = None) -> list[float]:
    """The `score` of every line (JSON objects; other fields are ignored), as a gate of `bias` gives it.

    A line with a field `bias`, the gate's when the score was made, is converted; without it the score is
    taken to be of `scored_bias`, or else of `bias` itself.

    Raises:
        InputError: the file is missing, unreadable or empty, or a line has no finite score. Nothing is
            skipped but blank lines: a lost line would change the rate that is promised.
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
    """Raises `InputError` if the file was last written before `moved` (ISO 8601): its scores are of another
    bias than the gate's of now, and a threshold taken from them would promise nothing."""
    place = Path(file)
    since = datetime.datetime.fromisoformat(moved)
    if place.is_file() and place.stat().st_mtime < since.timestamp():
        raise InputError(
            f"{place} was written before the gate was set to its bias of now ({moved}), so its scores are of "
            "another one. Score the prompts again, or give the bias of then with --scored-bias "
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
        told = "null, which stands for NaN" if value is None else f"{value!r:.40}"
        raise InputError(f"{place}: the {field} is {told}; expected a number.")
    try:
        number = float(value)
    except OverflowError:  # an integer of hundreds of digits
        number = math.inf
    if not math.isfinite(number):
        raise InputError(
            f"{place}: the {field} is {number}; expected a finite number. Remove or mend the line."
        )
    return number
