"""Our own short texts with one question each, about the topic, the mood or a fact in the text.

The prompt does not list the choices, because a small model takes the first of a list; the choices are whole
sentences where possible. In this form SmolLM2-135M is right about 78 % of the topics (chance 17), 99 % of the
moods (50) and 72 % of the facts (25), n = 300, so that a loss of utility can show. The text of a fact does
not contain the wrong choices.
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
    file = importlib.resources.files("inferaligner.evaluation.suites") / "reading.jsonl"
    return [_item(json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def _item(row: dict[str, Any]) -> Item:
    text, kind = row["text"], row["domain"]
    choices: Sequence[str]
    if kind == "topic":
        prompt, sentence, choices = f"{text}\n\nWhat is this text about?", "this text is about {}.", _TOPICS
    elif kind == "sentiment":
        prompt = f"Review: {text}\n\nWhat is the sentiment of this review?"
        sentence, choices = "the sentiment of this review is {}.", _MOODS
    else:
        prompt, sentence, choices = f"{text}\n\n{row['question']}", "{}", row["choices"]
    answers = {choice: sentence.format(choice).capitalize() for choice in choices}
    return Item(prompt, kind, tuple(answers.values()), answers[row["answer"]])


READING = Suite(
    "reading",
    "Reading: topic, mood and facts of short texts",
    "utility",
    Shipped(_rows),
    "pick",
    citation="Written for inferaligner (evaluation/suites/reading.jsonl).",
    licence="Apache-2.0",
)
