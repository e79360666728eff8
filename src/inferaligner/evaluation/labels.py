"""Reads an answer for the choice or the number that it names."""

from __future__ import annotations

import re
from collections.abc import Sequence

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def named_choice(answer: str, choices: Sequence[str]) -> str | None:
    """The choice that comes first in the answer as a separate word; None if there is none.

    A single letter counts at the start before punctuation, a line break or the end, and in brackets, in bold
    or after "answer is": elsewhere it may be a word.
    """
    matches: list[tuple[int, str]] = []
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
            matches.append((match.start(), choice))
    return min(matches)[1] if matches else None


def last_number(answer: str) -> str | None:
    """The last number in the answer, or in the text after "####", without thousands separators."""
    marked = answer.rpartition("####")[2] if "####" in answer else answer
    numbers = _NUMBER.findall(marked)
    return numbers[-1].replace(",", "") if numbers else None


def same_number(first: str | None, second: str | None) -> bool:
    """Whether both are numbers of the same value."""
    if first is None or second is None:
        return False
    try:
        return abs(float(first.replace(",", "")) - float(second.replace(",", ""))) < 1e-9
    except ValueError:
        return False
