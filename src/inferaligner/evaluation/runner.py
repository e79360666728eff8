"""Runs every method on every suite and writes the records batch by batch.

For each method in turn, the bare model first, and for each suite:
1. the method decides; closed rows get a copy of the bare model's record (`shared`);
2. open rows are answered in batches that depend on lengths alone, so a continued run forms the same batches;
3. each finished batch is on the disk before the next one begins.

In suites of the kind `benign` no record is copied: the gate decides inside `generate`, on every row, in the
batches of the bare model, so that "closed answers are identical" is measured. The same holds in every suite
for a method that watches answers, because its closed prompts may still be steered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from inferaligner.errors import InputError
from inferaligner.evaluation.batches import plan_batches
from inferaligner.evaluation.labels import last_number, named_choice, same_number
from inferaligner.evaluation.likelihood import answer_logprobs, mean_logprobs, refusal_leaning
from inferaligner.evaluation.methods.method import Method
from inferaligner.evaluation.records_file import Record, RecordsFile
from inferaligner.evaluation.suites.sampling import Subset
from inferaligner.evaluation.suites.suite import Suite
from inferaligner.fit.progress import Advance, Progress
from inferaligner.judges.degeneracy import loops
from inferaligner.judges.rules import judge
from inferaligner.method.decision import Decision
from inferaligner.models.generation import Answer, generate_answers
from inferaligner.models.grouped_attention import grouped_attention
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.chat import context_length, encode_chats
from inferaligner.prompts.images import Prompt, pictures_of, text_of
from inferaligner.steering.guard import Guard

BARE = "none"
_PICKS_PER_BATCH = 32


@dataclass(frozen=True)
class RunSettings:
    """How answers are generated; always greedily. `max_new_tokens` is given by the suite."""

    max_new_tokens: Callable[[Suite], int]
    batch_size: int
    likelihoods: bool = True  # of answers, for the judge, and of a refusal's opening on harmful suites


class Runner:
    """One run; `run` may be called again after an interruption with the same arguments and records."""

    def __init__(self, records: RecordsFile, settings: RunSettings, progress: Progress) -> None:
        self._records = records
        self._settings = settings
        self._progress = progress
        self._decisions: dict[tuple[str, str], list[Decision]] = {}

    def run(self, methods: Sequence[Method], subsets: Sequence[Subset]) -> None:
        """Answers every prompt that has no record yet. The first method is the bare model.

        Raises:
            PromptTooLongError: a prompt does not fit into the model's context; nothing was answered.
        """
        self._check_lengths(methods, subsets)
        for method in methods:
            for subset in subsets:
                missing = len(subset.items) - len(self._records.of(method.name, subset.suite.name))
                if missing:
                    with self._progress.stage(f"{method.title}: {subset.suite.name}", missing) as advance:
                        self._suite(method, subset, advance)

    def _check_lengths(self, methods: Sequence[Method], subsets: Sequence[Subset]) -> None:
        """Raises `PromptTooLongError` before the first answer, not after hours of work."""
        target = methods[0].context.target
        limit = context_length(target.model.config)
        for method in methods:
            for subset in subsets:
                prompts = [method.rewrite(item.prompt) for item in subset.items]
                encode_chats(
                    target.reader,
                    prompts,
                    system=method.context.system,
                    max_length=None if limit is None else limit - 1,
                )

    def _suite(self, method: Method, subset: Subset, advance: Advance) -> None:
        suite, everything = subset.suite, list(range(len(subset.items)))
        untrusted = suite.kind == "benign" and suite.task == "reply"
        if (untrusted or method.has_monitor) and method.gated() is not None:
            if suite.task == "pick":
                self._picks(method, subset, everything, self._decide(method, subset), advance, own_gate=True)
            else:
                self._replies(method, subset, everything, None, advance, own_gate=True)
            return
        decisions = self._decide(method, subset)
        acted = everything
        if decisions is not None:
            acted = [row for row in everything if decisions[row].open]
            self._share(method, subset, decisions, advance)
        if not acted:
            return
        if method.canned is not None:
            self._append([self._canned(method, subset, row, decisions) for row in acted], advance)
            return
        answer = self._picks if suite.task == "pick" else self._replies
        answer(method, subset, acted, decisions, advance)

    def _decide(self, method: Method, subset: Subset) -> list[Decision] | None:
        if method.gate is None:
            return None
        key = (method.gate, subset.suite.name)
        if key not in self._decisions:
            decisions = method.decide([item.prompt for item in subset.items])
            assert decisions is not None
            self._decisions[key] = decisions
        return self._decisions[key]

    def _share(self, method: Method, subset: Subset, decisions: Sequence[Decision], advance: Advance) -> None:
        """Writes the records of the closed rows: copies of the bare model's."""
        bare = self._records.of(BARE, subset.suite.name)
        shared = []
        for row, decision in enumerate(decisions):
            if not decision.open:
                ours = {"method": method.name, "score": decision.score, "open": False, "shared": True}
                shared.append({**bare[row], **ours})
        self._append(shared, advance)

    def _canned(
        self, method: Method, subset: Subset, row: int, decisions: Sequence[Decision] | None
    ) -> Record:
        text = method.canned or ""
        record = {**self._head(method, subset, row, decisions), "response": text, "tokens": 0}
        record |= {"ended": True, "looped": False}
        return {**record, "digest": _digest(text), **_judged(subset, row, text, None)}

    def _replies(
        self,
        method: Method,
        subset: Subset,
        rows: Sequence[int],
        decisions: Sequence[Decision] | None,
        advance: Advance,
        *,
        own_gate: bool = False,
    ) -> None:
        """Generates answers; with `own_gate` the gate decides inside `generate`, row by row."""
        loaded, system, settings = method.model(), method.context.system, self._settings
        prompts = {row: method.rewrite(subset.items[row].prompt) for row in rows}
        ids = encode_chats(loaded.reader, [prompts[row] for row in rows], system=system)
        lean = settings.likelihoods and subset.suite.kind in ("harmful", "jailbreak")
        # The odds are computed from token ids alone, which do not hold the pictures.
        lean = lean and not any(pictures_of(item.prompt) for item in subset.items)
        bare = self._records.of(BARE, subset.suite.name) if own_gate else {}
        for batch in plan_batches(list(map(len, ids)), list(rows), settings.batch_size):
            if not self._missing(method, subset, batch):
                continue
            of_batch = [prompts[row] for row in batch]
            with (method.gated() if own_gate else None) or method.acting() as guard:
                # In step with the bare model, so that its answers to closed rows are the same bit for bit.
                lengths = [bare[row]["tokens"] for row in batch] if bare else None
                most = settings.max_new_tokens(subset.suite)
                answers = self._generate(loaded, of_batch, most, system, guard if own_gate else None, lengths)
                leanings: Sequence[float | None] = [None] * len(batch)
                if lean:
                    leanings = refusal_leaning(
                        loaded.model, loaded.reader, list(map(text_of, of_batch)), system=system, guard=guard
                    )
            # For every method, the bare model included: the judge needs the same evidence for all of them.
            likelihoods: Sequence[float | None] = [None] * len(batch)
            if settings.likelihoods:
                likelihoods = _likelihoods(method.context.target, loaded, answers)
            records = []
            for row, answer, leaning, likely in zip(batch, answers, leanings, likelihoods, strict=True):
                record = self._head(method, subset, row, decisions)
                if answer.decision is not None:
                    record |= {"score": answer.decision.score, "open": answer.decision.open}
                    if answer.decision.answer_token is not None:
                        record["opened at token"] = answer.decision.answer_token
                record |= {
                    "response": answer.text,
                    "tokens": len(answer.tokens),
                    "ended": answer.ended,
                    "looped": not answer.ended and loops(answer.text),
                    "digest": _digest(answer.tokens),
                    **({} if leaning is None else {"leaning": leaning}),
                    **({} if likely is None else {"mean_logprob": likely}),
                }
                records.append(record | _judged(subset, row, answer.text, likely))
            self._append(records, advance)

    def _generate(
        self,
        loaded: LoadedModel,
        prompts: Sequence[Prompt],
        most: int,
        system: str | None,
        guard: Guard | None,
        lengths: Sequence[int] | None,
    ) -> list[Answer]:
        """Answers of up to `most` tokens in the order of prompts; in halves if memory runs out.

        The decisions are those of `guard`. `lengths` are the tokens of the bare model's answers, if these
        answers are compared with them.
        """
        try:
            # For every method, so that answers of two methods differ by their methods alone.
            with grouped_attention(loaded.model):
                answers = generate_answers(
                    loaded.model,
                    loaded.reader,
                    prompts,
                    max_new_tokens=most,
                    batch_size=len(prompts),
                    system=system,
                    decisions=None if guard is None else (lambda: guard.decisions),
                    in_step_with=lengths,
                )
                return sorted(answers, key=lambda answer: answer.row)
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
        # Outside the except block, because the error holds on to the memory of the failed pass.
        torch.cuda.empty_cache()
        middle = len(prompts) // 2
        halves = slice(middle), slice(middle, None)
        return [
            answer
            for half in halves
            for answer in self._generate(
                loaded, prompts[half], most, system, guard, None if lengths is None else lengths[half]
            )
        ]

    def _picks(
        self,
        method: Method,
        subset: Subset,
        rows: Sequence[int],
        decisions: Sequence[Decision] | None,
        advance: Advance,
        *,
        own_gate: bool = False,
    ) -> None:
        """Picks the likeliest choice; with `own_gate` the gate decides in that pass which rows to steer."""
        loaded, system = method.model(), method.context.system
        prompts = {row: method.rewrite(subset.items[row].prompt) for row in rows}
        ids = encode_chats(loaded.reader, [prompts[row] for row in rows], system=system)
        for batch in plan_batches(list(map(len, ids)), list(rows), _PICKS_PER_BATCH):
            if not self._missing(method, subset, batch):
                continue
            with (method.gated() if own_gate else None) or method.acting() as guard:
                values = answer_logprobs(
                    loaded.model,
                    loaded.tokenizer,
                    [_text_alone(prompts[row]) for row in batch],
                    [subset.items[row].choices for row in batch],
                    system=system,
                    guard=guard,
                )
            records = []
            for row, logprobs in zip(batch, values, strict=True):
                item = subset.items[row]
                picked = item.choices[max(range(len(logprobs)), key=lambda at: logprobs[at])]
                head = self._head(method, subset, row, decisions)
                result = {"logprobs": logprobs, "digest": _digest(logprobs), "picked": picked}
                records.append({**head, **result, "correct": picked == item.answer})
            self._append(records, advance)

    def _head(self, method: Method, subset: Subset, row: int, decisions: Sequence[Decision] | None) -> Record:
        item, suite = subset.items[row], subset.suite
        record: Record = {
            "method": method.name,
            "suite": suite.name,
            "row": row,
            "kind": suite.kind,
            "task": suite.task,
            "domain": item.domain,
            "prompt": text_of(item.prompt),
            "shared": False,
        }
        if pictures_of(item.prompt):
            record["images"] = [picture.digest for picture in pictures_of(item.prompt)]
        if item.name:
            record["name"] = item.name
        if item.answer is not None:
            record["answer"] = item.answer
        if decisions is not None:
            record |= {"score": decisions[row].score, "open": decisions[row].open}
        return record

    def _missing(self, method: Method, subset: Subset, batch: Sequence[int]) -> bool:
        finished = self._records.of(method.name, subset.suite.name)
        return any(row not in finished for row in batch)

    def _append(self, records: Sequence[Record], advance: Advance) -> None:
        if records:
            finished = self._records.of(records[0]["method"], records[0]["suite"])
            fresh = sum(record["row"] not in finished for record in records)
            self._records.append(records)
            advance(fresh)


def _likelihoods(target: LoadedModel, answered: LoadedModel, answers: Sequence[Answer]) -> list[float | None]:
    """Mean log-likelihoods under the target; the model that answered may have another tokenizer."""
    if answered is target:
        return mean_logprobs(target.model, [answer.tokens for answer in answers])
    texts = [answer.text for answer in answers]
    encoded = [target.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return mean_logprobs(target.model, encoded)


def _text_alone(prompt: Prompt) -> str:
    if pictures_of(prompt):
        raise InputError(
            "A suite of choices has a picture in a prompt; likelihoods are computed for text alone."
        )
    return text_of(prompt)


def _judged(subset: Subset, row: int, text: str, likely: float | None) -> dict[str, Any]:
    """The outcome by the rules (task `reply`), or whether the answer has the right choice or number."""
    item, task = subset.items[row], subset.suite.task
    if task == "reply":
        judgement = judge(text, mean_logprob=likely)
        return {"outcome": judgement.outcome, "reason": judgement.reason}
    if task in ("name", "pick"):
        picked = named_choice(text, item.choices)
        return {"picked": picked, "correct": picked == item.answer}
    picked = last_number(text)
    return {"picked": picked, "correct": same_number(picked, item.answer)}


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
