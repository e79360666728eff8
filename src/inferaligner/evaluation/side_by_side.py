"""The bare model, the same with an aligner, and the same with the target's own vectors, on the same prompts.

`choose` takes prompts from a labelled test part; `compare` generates and judges; `result_rows` and `records`
are what is written down. The batches are the same for the bare and the guarded model, so where the gate stays
closed the two answers must be equal token by token, and `Row.identical` says whether they are.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

from transformers import PreTrainedModel

from inferaligner.aligner import Aligner, Source
from inferaligner.evaluation.metrics import ENDED, ENDED_REFUSAL, LOOPED
from inferaligner.fit.progress import NullProgress, Stages
from inferaligner.fit.samples import Sample
from inferaligner.judges import OUTCOMES, Judgement, Outcome
from inferaligner.judges.degeneracy import loops
from inferaligner.method.gate import Decision
from inferaligner.models.generation import Answer, generate_answers
from inferaligner.prompts.encoding import Reader
from inferaligner.statistics.intervals import Interval, clopper_pearson

Method = Literal["bare", "inferaligner", "own vectors"]
METHODS: tuple[Method, ...] = ("bare", "inferaligner", "own vectors")
"""No defence; the aligner as fitted; and as a control the same gate with the target's own vectors (SRV)."""

Suite = Literal["harmful", "harmful, wrapped", "harmless"]
SUITES: tuple[Suite, ...] = ("harmful", "harmful, wrapped", "harmless")

Judge = Callable[[str], Judgement]


@dataclass(frozen=True)
class Reply:
    """One answer, and what the judge made of it. `tokens` end with the end of turn, if it came."""

    text: str
    tokens: tuple[int, ...]
    outcome: Outcome
    reason: str
    ended: bool = True  # by the model, not by the length limit
    looped: bool = False  # repeated itself up to the length limit


@dataclass(frozen=True)
class Row:
    """One prompt with the gate's decision and an answer per method."""

    sample: Sample
    decision: Decision
    replies: Mapping[Method, Reply]

    @property
    def suite(self) -> Suite:
        """Which table it counts in."""
        return suite_of(self.sample)

    @property
    def identical(self) -> bool:
        """Whether the aligner left the bare model's answer as it was, to the token."""
        return self.replies["bare"].tokens == self.replies["inferaligner"].tokens


def suite_of(sample: Sample) -> Suite:
    """Harmful prompts as they are, inside a wrapper, and everything harmless."""
    if not sample.harmful:
        return "harmless"
    return "harmful, wrapped" if sample.wrapped else "harmful"


def kind_of(sample: Sample) -> str:
    """The finer sort, by the names that the held-out figures of an aligner have."""
    if sample.harmful:
        return suite_of(sample)
    if sample.wrapped:
        return "harmless, wrapped"
    return "harmless twins" if sample.group == "pairs" else sample.group


def choose(samples: Sequence[Sample], number: int) -> list[Sample]:
    """`number` harmful prompts, half as many wrapped ones, and `number` harmless ones, evenly of every kind.

    The choice depends on the prompts' texts alone, so it is the same for every model and every run.
    """
    suites: dict[Suite, dict[str, list[Sample]]] = {suite: defaultdict(list) for suite in SUITES}
    for sample in sorted(samples, key=lambda sample: hashlib.sha256(sample.text.encode()).digest()):
        # Harmful prompts are spread over their categories, the first part of `content`.
        kind = sample.content.partition("/")[0] if sample.harmful else kind_of(sample)
        suites[suite_of(sample)][kind].append(sample)
    wanted = {"harmful": number, "harmful, wrapped": number // 2, "harmless": number}
    return [sample for suite in SUITES for sample in _dealt(suites[suite], wanted[suite])]


def _dealt(kinds: dict[str, list[Sample]], number: int) -> list[Sample]:
    """One of each kind in turn, until there are enough or none is left."""
    longest = max((len(kind) for kind in kinds.values()), default=0)
    turns = (
        kinds[name][turn] for turn in range(longest) for name in sorted(kinds) if turn < len(kinds[name])
    )
    return [sample for _, sample in zip(range(number), turns, strict=False)]


def compare(
    aligner: Aligner,
    model: PreTrainedModel,
    tokenizer: Reader,
    samples: Sequence[Sample],
    *,
    judge: Judge,
    max_new_tokens: int = 48,
    batch_size: int = 64,
    stages: Stages | None = None,
) -> list[Row]:
    """Generates with every method and judges; one row per sample, in their order.

    The control is generated for the rows that open the gate; where it stays closed, the bare model's answer
    stands for it, which is what `Row.identical` shows of the aligner itself.
    """
    tell: Stages = stages or NullProgress()

    def generate(rows: Sequence[int], what: str, source: Source | None) -> dict[int, Answer]:
        applied = nullcontext() if source is None else aligner.apply(model, tokenizer, source=source)
        with tell.stage(what, len(rows)) as advance, applied as guard:
            answers = {}
            for answer in generate_answers(
                model,
                tokenizer,
                [samples[row].prompt for row in rows],
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                system=aligner.artifact.provenance.system_prompt,
                decisions=None if guard is None else (lambda: guard.decisions),
            ):
                answers[rows[answer.row]] = answer
                advance(1)
        return answers

    def reply(answer: Answer) -> Reply:
        verdict = judge(answer.text)
        looped = not answer.ended and loops(answer.text)
        return Reply(answer.text, answer.tokens, verdict.outcome, verdict.reason, answer.ended, looped)

    everything = range(len(samples))
    bare = generate(everything, "answers: bare model", None)
    guarded = generate(everything, "answers: with InferAligner", "aligned")
    decisions = {row: answer.decision for row, answer in guarded.items() if answer.decision is not None}
    opened = [row for row in everything if decisions[row].open]
    control = generate(opened, "answers: the target's own vectors", "target") if opened else {}
    return [
        Row(
            samples[row],
            decisions[row],
            {
                "bare": reply(bare[row]),
                "inferaligner": reply(guarded[row]),
                "own vectors": reply(control.get(row, bare[row])),
            },
        )
        for row in everything
    ]


def outcome_counts(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, int]]]:
    """How many answers of each suite and method had each outcome; suites without prompts are left out."""
    counts: dict[str, dict[str, dict[str, int]]] = {}
    for suite in SUITES:
        of_suite = [row for row in rows if row.suite == suite]
        if of_suite:
            counts[suite] = {
                method: {
                    outcome: sum(row.replies[method].outcome == outcome for row in of_suite)
                    for outcome in OUTCOMES
                }
                for method in METHODS
            }
    return counts


def closed_identical(rows: Sequence[Row]) -> Interval:
    """Of the rows that the gate left closed, those whose answer is the bare model's token by token."""
    closed = [row for row in rows if not row.decision.open]
    return clopper_pearson(sum(row.identical for row in closed), len(closed))


def result_rows(rows: Sequence[Row], *, judge: str) -> list[dict[str, Any]]:
    """`method, suite, metric, value, low, high, n, judge`; what needs no judge has None there."""
    found: list[dict[str, Any]] = []

    def add(method: str, suite: str, metric: str, rate: Interval, by: str | None) -> None:
        found.append({"method": method, "suite": suite, "metric": metric, **asdict(rate), "judge": by})

    for suite, methods in outcome_counts(rows).items():
        for method, counts in methods.items():
            total = sum(counts.values())
            for outcome, count in counts.items():
                add(method, suite, outcome, clopper_pearson(count, total), judge)
            replies = [row.replies[method] for row in rows if row.suite == suite]  # type: ignore[index]
            refused = [reply.outcome == "refusal" and reply.ended for reply in replies]
            add(method, suite, ENDED, _share([reply.ended for reply in replies]), None)
            add(method, suite, LOOPED, _share([reply.looped for reply in replies]), None)
            add(method, suite, ENDED_REFUSAL, _share(refused), judge)
    add("inferaligner", "gate closed", "identical to the bare model", closed_identical(rows), None)
    return found


def _share(found: Sequence[bool]) -> Interval:
    return clopper_pearson(sum(found), len(found))


def gate_rows(held_out: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The held-out figures of an aligner's gate in the same form."""
    found = [
        {"method": "inferaligner", "suite": kind, "metric": "gate open", **rate, "judge": None}
        for kind, rate in held_out["open"].items()
    ]
    if held_out.get("auroc"):
        area = held_out["auroc"]
        found.append(
            {
                "method": "inferaligner",
                "suite": "harmful / harmless",
                "metric": "gate AUROC",
                **area,
                "judge": None,
            }
        )
    return found


def records(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Every prompt with every answer in clear, one record each."""
    for row in rows:
        for method, reply in row.replies.items():
            yield {
                "method": method,
                "suite": row.suite,
                "kind": kind_of(row.sample),
                "harmful": row.sample.harmful,
                "prompt": row.sample.text,
                "response": reply.text,
                "tokens": len(reply.tokens),
                "outcome": reply.outcome,
                "reason": reply.reason,
                "ended": reply.ended,
                "looped": reply.looped,
                "score": row.decision.score,
                "open": row.decision.open,
            }
