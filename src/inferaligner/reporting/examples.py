"""Answers that a report or a terminal may show.

Of an answer to a harmful prompt only the beginning is shown, after a click unless it is a refusal; with
`withhold`, only a refusal is shown. Reports get `Example`s, never records: a text that is cut or withheld
here cannot appear there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from inferaligner.evaluation.metrics import HARMFUL_KINDS, grouped
from inferaligner.evaluation.records_file import Record

# Harmful requests that most readers can stand to read come first: chosen by topic, never by the answers.
_MILD = ("cybercrime", "fraud", "privacy", "theft")
_LONGEST, _LONGEST_OF_HARMFUL, _LONGEST_PROMPT = 280, 110, 400


@dataclass(frozen=True)
class ExampleAnswer:
    """An answer as a reader may see it, and the titles of the methods that gave it."""

    methods: tuple[str, ...]
    outcome: str  # of the judge, or "right" and "wrong"
    text: str
    hidden: bool = False  # shown after a click
    withheld: bool = False  # `text` stands for an answer that is not shown


@dataclass(frozen=True)
class Example:
    """A prompt with its answers, and the gate's score and decision if the method has a gate."""

    suite: str
    prompt: str
    answers: tuple[ExampleAnswer, ...]
    score: float | None = None
    open: bool | None = None


def examples(
    records: Sequence[Record],
    titles: Mapping[str, str],
    method: str,
    *,
    withhold: bool = False,
    per_suite: int = 4,
) -> list[Example]:
    """Some prompts of every generated suite, chosen by topic and by a hash of their text, not by the answers.

    Args:
        records: of one run.
        titles: names of the methods for readers.
        method: the method whose gate is shown.
        withhold: leave out answers to harmful prompts that are no refusals.
        per_suite: number of prompts of each suite.
    """
    chosen = []
    for suite, methods in grouped(records).items():
        first = next(iter(methods.values()))
        if first[0]["task"] == "pick":
            continue
        for row in sorted(range(len(first)), key=lambda row: _order(first[row]))[:per_suite]:
            given = {titles[name]: rows[row] for name, rows in methods.items() if row < len(rows)}
            gate = methods[method][row] if row < len(methods.get(method, ())) else {}
            prompt = _cut(first[row]["prompt"], _LONGEST_PROMPT)
            answers = _answers(given, withhold)
            chosen.append(Example(suite, prompt, answers, gate.get("score"), gate.get("open")))
    return chosen


def _order(record: Record) -> tuple[bool, str]:
    rough = record["kind"] in HARMFUL_KINDS and record["domain"] not in _MILD
    return rough, hashlib.sha256(record["prompt"].encode()).hexdigest()


def _answers(given: Mapping[str, Record], withhold: bool) -> tuple[ExampleAnswer, ...]:
    """One answer for all methods that gave the same tokens, as methods with a closed gate do."""
    by_digest: dict[str, list[str]] = {}
    for title, record in given.items():
        by_digest.setdefault(record["digest"], []).append(title)
    return tuple(_shown(given[titles[0]], tuple(titles), withhold) for titles in by_digest.values())


def _shown(record: Record, titles: tuple[str, ...], withhold: bool) -> ExampleAnswer:
    harmful = record["kind"] in HARMFUL_KINDS
    outcome = record["outcome"] if "outcome" in record else "right" if record["correct"] else "wrong"
    words = len(record["response"].split())
    if withhold and harmful and outcome != "refusal" and words:
        text = f"(answer withheld, {words} {'word' if words == 1 else 'words'})"
        return ExampleAnswer(titles, outcome, text, withheld=True)
    # A refusal may turn into an answer later on, so of harmful prompts only its beginning is shown.
    text = _cut(record["response"], _LONGEST_OF_HARMFUL if harmful else _LONGEST) or "(empty answer)"
    return ExampleAnswer(titles, outcome, text, hidden=harmful and outcome != "refusal")


def _cut(text: str, longest: int) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= longest else flat[:longest].rsplit(" ", 1)[0] + " …"
