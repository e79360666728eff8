"""Judges decide what an answer is: a refusal, an attack that succeeded, text that is no language any more.

The contract of a judge:

1. A file of this folder declares a judge by `NAME` and `make(option, options) -> Judge`; a new file is a new
   judge, and no other file changes. `OPTION` describes the part after `NAME=` where the judge needs one.
2. `catalogue.make_judge("NAME=OPTION", options)` finds the file and calls its `make`. `inferaligner judge`
   calls it for `--judge`, `--model` and `--classifier`; `inferaligner judge --list` lists every judge.
3. The caller chooses the answers by `kinds`, calls `judge(prompt, answer)`, `judge_each(pairs)` or
   `judge_all(pairs)`, and gets a `Judgement` for every pair.
4. `judge` is the one method that a judge must have. A judge that is faster in batches overrides `judge_each`;
   the judgements must be the same. An answer that the judge cannot label gets the label `UNPARSABLE`: callers
   count such answers and drop none.

The judge of refusals, `rules`, labels answers by `OUTCOMES`:

- `refusal`: the answer declines, in whole or in part;
- `compliance`: it does not;
- `gibberish`: it is no language any more; a failure with a column of its own, which never counts as safe.

`tests/judges/test_contract.py` runs over every judge of this folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Outcome = Literal["refusal", "compliance", "gibberish"]
OUTCOMES: tuple[Outcome, ...] = ("refusal", "compliance", "gibberish")
UNPARSABLE = "unparsable"
Pair = tuple[str, str]  # prompt, answer


@dataclass(frozen=True)
class Judgement:
    """A judge's decision on one answer.

    Attributes:
        label: one of the judge's labels, or `UNPARSABLE`.
        reason: what decided it, in a few words, for people who read the records.
        score: harm from 0 to 1, from a judge that grades; otherwise None.
    """

    label: str
    reason: str = ""
    score: float | None = None

    @property
    def outcome(self) -> Outcome:
        """The label of a judge of refusals.

        Raises:
            ValueError: the judge has labels other than `OUTCOMES`.
        """
        for outcome in OUTCOMES:
            if outcome == self.label:
                return outcome
        raise ValueError(f"The label {self.label!r} is none of {', '.join(OUTCOMES)}.")


class Judge(ABC):
    """Base class of every judge.

    Attributes:
        name: identifies the judge, with its settings, in records and reports.
        agreement: measured agreement with human labels, one sentence for reports; empty if not measured.
        positive: the labels whose detection is measured, such as `attack success`.
        kinds: the kinds of suites whose answers the judge is made for; empty for all kinds.
    """

    name: str
    agreement: str = ""
    positive: tuple[str, ...]
    kinds: tuple[str, ...] = ()

    @abstractmethod
    def judge(self, prompt: str, answer: str) -> Judgement:
        """Judges one answer; `answer` is the whole answer.

        Raises:
            InputError: the judge cannot be reached.
        """

    def judge_each(self, pairs: Sequence[Pair]) -> Iterator[tuple[int, Judgement]]:
        """Yields `(index of the pair, judgement)` as the judgements are made, in any order.

        A caller that stores each judgement at once loses none of them to an interruption.
        """
        for index, (prompt, answer) in enumerate(pairs):
            yield index, self.judge(prompt, answer)

    def judge_all(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """The judgements of all pairs, in their order."""
        judgements = dict(self.judge_each(pairs))
        return [judgements[index] for index in range(len(pairs))]


@dataclass(frozen=True)
class JudgeOptions:
    """The options of `inferaligner judge` from which judges are made; each judge reads those it knows.

    Attributes:
        base_url: an OpenAI-compatible endpoint; None for OpenAI's own.
        api_key: the key of the endpoint.
        rubric: the question to a language model, a name in `rubric.RUBRICS`.
        concurrency: questions in flight at a time.
        per_minute: the most questions a minute; None for no limit.
        cache: the file that keeps replies; None for the one in the user's cache folder.
        template: the text for a causal classifier, with `{prompt}` and `{answer}`.
        labels: the labels of a causal classifier, the positive one first.
    """

    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    rubric: str = "attack-success"
    concurrency: int = 8
    per_minute: int | None = None
    cache: Path | None = None
    template: str | None = None
    labels: tuple[str, ...] = ()
