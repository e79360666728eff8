"""What an answer names: one of the choices, or a number."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def named_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that comes first in the answer as a word of its own; None if there is none.

    A single letter counts only where it is no word: at the start, in brackets, in bold, or after "answer is",
    and followed by punctuation, a blank or the end.
    """
    found: list[tuple[int, str]] = []
    for choice in choices:
        if len(choice) == 1 and choice.isalpha():
            letter = re.escape(choice)
            after = r"(?![\w'’])"
            begins = rf"^\W*({letter}){after}(?=$|[.):,*\n])"
            marked = rf"(?:\(|\*\*|[Aa]nswer(?: is)?:?\s+\W*)({letter}){after}"
            pattern = rf"(?:{begins})|(?:{marked})"
        else:
            pattern = rf"(?<!\w)({re.escape(choice)})(?!\w)"
        match = re.search(pattern, answer, 0 if len(choice) == 1 else re.IGNORECASE)
        if match:
            found.append((match.start(), choice))
    return min(found)[1] if found else None


def last_number(answer: str) -> str | None:
    """The last number of the answer, without thousands separators; "####" marks the final one."""
    marked = answer.rpartition("####")[2] if "####" in answer else answer
    numbers = _NUMBER.findall(marked)
    return numbers[-1].replace(",", "") if numbers else None


def same_number(first: str | None, second: str | None) -> bool:
    """Whether both are the same value."""
    if first is None or second is None:
        return False
    try:
        return abs(float(first.replace(",", "")) - float(second.replace(",", ""))) < 1e-9
    except ValueError:
        return False
