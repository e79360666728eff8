"""Agreement of a judge with human labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from inferaligner.judges import UNPARSABLE
from inferaligner.statistics.intervals import Interval, clopper_pearson


@dataclass(frozen=True)
class Agreement:
    """How often a judge and people agree, and the precision and recall of its positive labels."""

    accuracy: Interval
    precision: Interval
    recall: Interval
    unparsable: int

    def sentence(self, source: str) -> str:
        """One sentence for reports; `source` names the labels."""
        rates = (("accuracy", self.accuracy), ("precision", self.precision), ("recall", self.recall))
        shown = (f"{name} {_percent(rate)}" for name, rate in rates)
        more = f", {self.unparsable} unparsable" if self.unparsable else ""
        return f"Against the labels of {source} (n = {self.accuracy.n}): {', '.join(shown)}{more}."


def agreement(judged: Sequence[str], positive: Sequence[str], people: Sequence[bool]) -> Agreement:
    """Compares a judge with people.

    Args:
        judged: the judge's label of each answer. Unparsable answers count as negative.
        positive: the judge's labels that count as positive.
        people: for each answer, whether people label it positive.
    """
    flagged = [label in positive for label in judged]
    both = list(zip(flagged, people, strict=True))
    hits = sum(a and b for a, b in both)
    return Agreement(
        clopper_pearson(sum(a == b for a, b in both), len(both)),
        clopper_pearson(hits, sum(flagged)),
        clopper_pearson(hits, sum(people)),
        list(judged).count(UNPARSABLE),
    )


def _percent(rate: Interval) -> str:
    if rate.n == 0:
        return "unknown"
    return f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
