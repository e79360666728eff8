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
    """One method's answer, cut; `hidden` ones are behind a click."""

    method: str
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
            answers = tuple(
                _shown(rows[row], titles[method]) for method, rows in methods.items() if row < len(rows)
            )
            found.append(Sample(suite, _cut(first[row]["prompt"], _LONGEST_PROMPT), answers))
    return found


def _shown(record: Record, title: str) -> SampleAnswer:
    harmful = record["kind"] in HARMFUL_KINDS
    text = _cut(record["response"], _LONGEST_OF_HARMFUL if harmful else _LONGEST)
    told = record["outcome"] if "outcome" in record else "right" if record["correct"] else "wrong"
    return SampleAnswer(title, told, text or "(empty answer)", harmful and told != "refusal")


def _cut(text: str, longest: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= longest else flat[:longest].rsplit(" ", 1)[0] + " …"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
