"""Answers that a report shows: of harmful prompts only the beginning, and only after a click."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferaligner.evaluation.metrics import HARMFUL_KINDS, grouped
from inferaligner.evaluation.records_file import Record

_PER_SUITE = 4
_LONGEST, _LONGEST_OF_HARMFUL, _LONGEST_PROMPT = 280, 110, 400


@dataclass(frozen=True)
class SampleAnswer:
    """An answer, cut, and the methods that gave it; `hidden` ones are behind a click."""

    methods: tuple[str, ...]
    told: str  # outcome, or whether it was right
    text: str
    hidden: bool


@dataclass(frozen=True)
class Sample:
    """A prompt with the answers to it."""

    suite: str
    prompt: str
    answers: tuple[SampleAnswer, ...]


def samples(records: Sequence[Record], titles: Mapping[str, str]) -> list[Sample]:
    """Some prompts of every generated suite, chosen by a hash of their texts: none for its result."""
    found = []
    for suite, methods in grouped(records).items():
        first = next(iter(methods.values()))
        if first[0]["task"] == "pick":
            continue
        order = sorted(range(len(first)), key=lambda row: _hash(first[row]["prompt"]))
        for row in order[:_PER_SUITE]:
            given = {titles[method]: rows[row] for method, rows in methods.items() if row < len(rows)}
            found.append(Sample(suite, _cut(first[row]["prompt"], _LONGEST_PROMPT), _answers(given)))
    return found


def _answers(given: Mapping[str, Record]) -> tuple[SampleAnswer, ...]:
    """One answer where several methods gave the same: with a closed gate, all that have one do."""
    by_text: dict[str, list[str]] = {}
    for title, record in given.items():
        by_text.setdefault(record["response"], []).append(title)
    return tuple(_shown(given[titles[0]], tuple(titles)) for titles in by_text.values())


def _shown(record: Record, titles: tuple[str, ...]) -> SampleAnswer:
    harmful = record["kind"] in HARMFUL_KINDS
    text = _cut(record["response"], _LONGEST_OF_HARMFUL if harmful else _LONGEST)
    told = record["outcome"] if "outcome" in record else "right" if record["correct"] else "wrong"
    return SampleAnswer(titles, told, text or "(empty answer)", harmful and told != "refusal")


def _cut(text: str, longest: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= longest else flat[:longest].rsplit(" ", 1)[0] + " …"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
