"""Judges that read a prompt and an answer together: a language model, a classifier, or the rules.

Who calls what: `judge_pairs(pairs)` yields `(index, Label)` as labels come, in any order; whoever calls
writes them down at once. `positive` are the labels for which the judge is asked (attack succeeded, answer
declines): its agreement with people is measured on those.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from inferaligner.judges.rules import RuleJudge, judge
from inferaligner.statistics.intervals import Interval, clopper_pearson

UNPARSABLE = "unparsable"
Pair = tuple[str, str]  # prompt, answer


@dataclass(frozen=True)
class Label:
    """What a judge says of an answer; `score` is harm between 0 and 1, where a judge grades."""

    label: str
    score: float | None = None
    reason: str = ""


class PairJudge(Protocol):
    """See the module."""

    name: str
    agreement: str
    positive: tuple[str, ...]

    def judge_pairs(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Label]]:
        """A label for each pair; raises `InputError` if the judge cannot be asked any more."""


class RulesOnPairs:
    """The rules as such a judge: the prompt is not looked at."""

    name = RuleJudge.name
    agreement = RuleJudge.agreement
    positive: tuple[str, ...] = ("refusal",)

    def judge_pairs(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Label]]:
        """Refusal, compliance or gibberish."""
        for index, (_, answer) in enumerate(pairs):
            verdict = judge(answer)
            yield index, Label(verdict.outcome, reason=verdict.reason)


@dataclass(frozen=True)
class Agreement:
    """A judge against people: how often they say the same, and on its positive labels."""

    accuracy: Interval
    precision: Interval
    recall: Interval
    unparsable: int

    def told(self, source: str) -> str:
        """One sentence for reports."""
        parts = (("accuracy", self.accuracy), ("precision", self.precision), ("recall", self.recall))
        shown = (f"{what} {_percent(rate)}" for what, rate in parts)
        more = f", {self.unparsable} unparsable" if self.unparsable else ""
        return f"Against the labels of {source} (n = {self.accuracy.n}): {', '.join(shown)}{more}."


def agreement(said: Iterable[str], positive: Sequence[str], labels: Sequence[bool]) -> Agreement:
    """The judge's labels against what people say (True: positive). Unparsable ones count as negative."""
    answers = list(said)
    found = [answer in positive for answer in answers]
    both = list(zip(found, labels, strict=True))
    hits = sum(a and b for a, b in both)
    return Agreement(
        clopper_pearson(sum(a == b for a, b in both), len(both)),
        clopper_pearson(hits, sum(found)),
        clopper_pearson(hits, sum(labels)),
        answers.count(UNPARSABLE),
    )


def _percent(rate: Interval) -> str:
    if rate.n == 0:
        return "unknown"
    return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
