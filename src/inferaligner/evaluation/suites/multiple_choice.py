"""Questions with lettered options."""

from __future__ import annotations

from collections.abc import Mapping

from inferaligner.evaluation.suites.suite import Item


def multiple_choice(question: str, options: Mapping[str, str], answer: str) -> Item:
    """The question with its options below, answered by a letter."""
    lines = [question, "", *(f"{letter}. {text}" for letter, text in options.items())]
    lines += ["", "Answer with the letter alone."]
    return Item("\n".join(lines), choices=tuple(options), answer=answer)
