"""Short texts with one question each: topic, mood, or a fact that stands in the text; our own.

The choices do not stand in the prompt, and are whole sentences where they can be: of a list, a small model
takes the first. In this form SmolLM2-135M knows 78 % of the topics (chance 17), 99 % of the moods (50) and
72 % of the facts (25), n = 300, so that its utility can move if something harms it. The wrong choices of a
fact do not stand in its text.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from typing import Any

from inferaligner.evaluation.suites.suite import Item, Shipped, Suite

_TOPICS = ("food", "sport", "music", "weather", "money", "animals")
_MOODS = ("positive", "negative")


def _rows() -> list[Item]:
    place = importlib.resources.files("inferaligner.evaluation.suites") / "reading.jsonl"
    return [_item(json.loads(line)) for line in place.read_text(encoding="utf-8").splitlines()]


def _item(row: dict[str, Any]) -> Item:
    text, kind = row["text"], row["domain"]
    choices: Sequence[str]
    if kind == "topic":
        prompt, said, choices = f"{text}\n\nWhat is this text about?", "this text is about {}.", _TOPICS
    elif kind == "sentiment":
        prompt = f"Review: {text}\n\nWhat is the sentiment of this review?"
        said, choices = "the sentiment of this review is {}.", _MOODS
    else:
        prompt, said, choices = f"{text}\n\n{row['question']}", "{}", row["choices"]
    answers = {choice: said.format(choice).capitalize() for choice in choices}
    return Item(prompt, kind, tuple(answers.values()), answers[row["answer"]])


SUITE = Suite(
    "reading",
    "Reading: topic, mood and facts of short texts",
    "utility",
    Shipped(_rows),
    "pick",
    citation="Written for inferaligner (evaluation/suites/reading.jsonl).",
    licence="Apache-2.0",
)
