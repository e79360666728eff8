"""The part of a refusal that declines, without offers and explanations that follow it."""

from __future__ import annotations

import re
from collections.abc import Callable

_SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？])\s*|\n+")


def declining_part(answer: str, outcome: Callable[[str], str]) -> str:
    """The fewest first sentences of a refusal that decline, and the declining sentences right after them.

    Args:
        answer: a whole answer.
        outcome: judges a text: "refusal" or another word.

    Returns:
        The part, stripped; the whole answer where no beginning of it declines.

    Example:
        >>> declining_part("I'm sorry. I can't help with that. I can help you sell it.", outcome)
        "I'm sorry. I can't help with that."
    """
    ends = [match.start() for match in _SENTENCE_END.finditer(answer)] + [len(answer)]
    parts = [answer[:end].strip() for end in ends]
    first = next((number for number, part in enumerate(parts) if outcome(part) == "refusal"), None)
    if first is None:
        return answer.strip()
    last = first
    while last + 1 < len(parts) and outcome(answer[ends[last] : ends[last + 1]].strip()) == "refusal":
        last += 1
    return parts[last]
