"""Answers that may be shown to a reader. What a model said to a harmful prompt, unless it declined, may not.

A report or a terminal gets `Example`s, never rows: an answer that is withheld here cannot slip out there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from inferaligner.evaluation.side_by_side import Method, Reply, Row, kind_of, suite_of
from inferaligner.judges import Outcome

# Harmful prompts that most readers can stand to read; the choice is by topic, not by what became of them.
_CATEGORIES = ("cybercrime", "fraud", "privacy", "theft")
_HARMLESS_KINDS = ("harmless twins", "medical", "everyday", "lookalike")
# A refusal may turn into an answer later on, so of harmful prompts only its beginning is shown.
_LONGEST, _LONGEST_OF_HARMFUL = 320, 160


@dataclass(frozen=True)
class Shown:
    """One answer as a reader may see it; `text` is empty where the answer is withheld."""

    method: Method
    outcome: Outcome
    text: str
    words: int

    @property
    def withheld(self) -> bool:
        """Whether there was something that is not shown."""
        return not self.text and self.words > 0

    @property
    def told(self) -> str:
        """The text, or what stands for it."""
        if self.withheld:
            return f"(answer withheld, {self.words} {'word' if self.words == 1 else 'words'})"
        return self.text or "(empty answer)"


@dataclass(frozen=True)
class Example:
    """One prompt, the gate's decision, and the answers that may be shown."""

    prompt: str
    kind: str
    harmful: bool
    score: float
    open: bool
    identical: bool  # the aligner left the bare model's answer as it was, to the token
    answers: tuple[Shown, ...]


def examples(rows: Sequence[Row], methods: Sequence[Method] = ("bare", "inferaligner")) -> list[Example]:
    """The first prompt of each of some kinds: four harmful, one wrapped, four harmless, if there are such."""
    return [
        Example(
            row.sample.text,
            kind_of(row.sample),
            row.sample.harmful,
            row.decision.score,
            row.decision.open,
            row.identical,
            tuple(shown(row.replies[method], method, harmful=row.sample.harmful) for method in methods),
        )
        for row in _chosen(rows)
    ]


def shown(reply: Reply, method: Method, *, harmful: bool) -> Shown:
    """A refusal, or an answer to a harmless prompt, cut to a readable length; anything else is withheld."""
    words = len(reply.text.split())
    if harmful and reply.outcome != "refusal":
        return Shown(method, reply.outcome, "", words)
    text = " ".join(reply.text.split())
    longest = _LONGEST_OF_HARMFUL if harmful else _LONGEST
    if len(text) > longest:
        text = text[:longest].rsplit(" ", 1)[0] + " …"
    return Shown(method, reply.outcome, text, words)


def _chosen(rows: Sequence[Row]) -> Iterator[Row]:
    harmful = [row for row in rows if suite_of(row.sample) == "harmful"]
    for category in _CATEGORIES:
        yield from [row for row in harmful if row.sample.content.startswith(f"{category}/")][:1]
    yield from [row for row in rows if suite_of(row.sample) == "harmful, wrapped" and _mild(row)][:1]
    for kind in _HARMLESS_KINDS:
        yield from [row for row in rows if kind_of(row.sample) == kind][:1]


def _mild(row: Row) -> bool:
    return row.sample.content.startswith(tuple(f"{category}/" for category in _CATEGORIES))
