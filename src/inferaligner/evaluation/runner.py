"""Runs every method on every suite and writes records as it goes.

For each method in turn, the bare model first, and for each suite:
1. the method decides; rows that stay closed take over the bare model's record (`shared`);
2. the others are answered in batches that depend on lengths alone, so a continued run forms the same ones;
3. each finished batch is on the disk before the next begins.

In suites of the kind `benign` nothing is taken over: there the gate decides inside `generate`, on every row,
in the batches of the bare model, and whether the answers are the same is measured. So it is in every suite
for a method that watches answers, whose closed prompts may still be steered.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
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
from inferaligner.fit.progress import Advance, Stages
from inferaligner.judges.degeneracy import loops
from inferaligner.judges.rules import judge
from inferaligner.method.gate import Decision
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
    """How answers are made; all greedy."""

    max_new_tokens: int
    batch_size: int
    leaning: bool = True  # also the odds of a refusal's opening, on harmful suites


class Runner:
    """One run; `run` may be called again after an interruption with the same arguments and records."""

    def __init__(self, records: RecordsFile, settings: RunSettings, tell: Stages) -> None:
        self._records = records
        self._settings = settings
        self._tell = tell
        self._decisions: dict[tuple[str, str], list[Decision]] = {}

    def run(self, methods: Sequence[Method], subsets: Sequence[Subset]) -> None:
        """Answers whatever is missing. `methods` begin with the bare model."""
        self._check_lengths(methods, subsets)
        for method in methods:
            for subset in subsets:
                missing = len(subset.items) - len(self._records.of(method.name, subset.suite.name))
                if missing:
                    with self._tell.stage(f"{method.title}: {subset.suite.name}", missing) as advance:
                        self._suite(method, subset, advance)

    def _check_lengths(self, methods: Sequence[Method], subsets: Sequence[Subset]) -> None:
        """A prompt that is too long must be told before hours of work, not after."""
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
            told = [self._canned(method, subset, row, decisions) for row in acted]
            self._append(told, advance)
            return
        answer = self._picks if suite.task == "pick" else self._replies
        answer(method, subset, acted, decisions, advance)

    def _decide(self, method: Method, subset: Subset) -> list[Decision] | None:
        if method.gate is None:
            return None
        known = (method.gate, subset.suite.name)
        if known not in self._decisions:
            found = method.decide([item.prompt for item in subset.items])
            assert found is not None
            self._decisions[known] = found
        return self._decisions[known]

    def _share(self, method: Method, subset: Subset, decisions: Sequence[Decision], advance: Advance) -> None:
        """Records of the closed rows: the bare model's answers."""
        bare = self._records.of(BARE, subset.suite.name)
        told = []
        for row, decision in enumerate(decisions):
            if not decision.open:
                ours = {"method": method.name, "score": decision.score, "open": False, "shared": True}
                told.append({**bare[row], **ours})
        self._append(told, advance)

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
        """Generated answers; with `own_gate` the method decides by itself, row by row, while generating."""
        loaded, system, settings = method.model(), method.context.system, self._settings
        prompts = {row: method.rewrite(subset.items[row].prompt) for row in rows}
        ids = encode_chats(loaded.reader, [prompts[row] for row in rows], system=system)
        lean = settings.leaning and subset.suite.kind in ("harmful", "jailbreak")
        # The odds are told from token ids alone, and a picture is no token.
        lean = lean and not any(pictures_of(item.prompt) for item in subset.items)
        for batch in plan_batches(list(map(len, ids)), list(rows), settings.batch_size):
            if not self._missing(method, subset, batch):
                continue
            asked = [prompts[row] for row in batch]
            with (method.gated() if own_gate else None) or method.acting() as guard:
                answers = self._generate(loaded, asked, system, guard if own_gate else None)
                leanings: Sequence[float | None] = [None] * len(batch)
                if lean:
                    leanings = refusal_leaning(
                        loaded.model, loaded.reader, list(map(text_of, asked)), system=system, guard=guard
                    )
            # Of every method alike, the bare one included: the judge must know as much of one as of another.
            likelihoods = _likelihoods(method.context.target, loaded, answers)
            told = []
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
                told.append(record | _judged(subset, row, answer.text, likely))
            self._append(told, advance)

    def _generate(
        self, loaded: LoadedModel, prompts: Sequence[Prompt], system: str | None, guard: Guard | None
    ) -> list[Answer]:
        """The answers in order, with the decisions of a guard that gates; in halves where memory runs out."""
        try:
            # Every method alike, so that answers differ by what a method does alone.
            with grouped_attention(loaded.model):
                found = generate_answers(
                    loaded.model,
                    loaded.reader,
                    prompts,
                    max_new_tokens=self._settings.max_new_tokens,
                    batch_size=len(prompts),
                    system=system,
                    decisions=None if guard is None else (lambda: guard.decisions),
                )
                return sorted(found, key=lambda answer: answer.row)
        except torch.OutOfMemoryError:
            if len(prompts) == 1:
                raise
        # Only here is the failed pass's memory free: its error held on to it.
        torch.cuda.empty_cache()
        middle = len(prompts) // 2
        halves = prompts[:middle], prompts[middle:]
        return [answer for half in halves for answer in self._generate(loaded, half, system, guard)]

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
        """Choices by their likelihood; with `own_gate` the method decides by itself which rows to steer."""
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
            told = []
            for row, logprobs in zip(batch, values, strict=True):
                item = subset.items[row]
                picked = item.choices[max(range(len(logprobs)), key=lambda at: logprobs[at])]
                head = self._head(method, subset, row, decisions)
                found = {"logprobs": logprobs, "digest": _digest(logprobs), "picked": picked}
                told.append({**head, **found, "correct": picked == item.answer})
            self._append(told, advance)

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

    def _append(self, told: Sequence[Record], advance: Advance) -> None:
        if told:
            finished = self._records.of(told[0]["method"], told[0]["suite"])
            fresh = sum(record["row"] not in finished for record in told)
            self._records.append(told)
            advance(fresh)


def _likelihoods(target: LoadedModel, answered: LoadedModel, answers: Sequence[Answer]) -> list[float | None]:
    """Under the target; another model may write with another tokenizer."""
    if answered is target:
        return mean_logprobs(target.model, [answer.tokens for answer in answers])
    texts = [answer.text for answer in answers]
    encoded = [target.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    return mean_logprobs(target.model, encoded)


def _text_alone(prompt: Prompt) -> str:
    if pictures_of(prompt):
        raise InputError("A suite of choices has a picture in a prompt; likelihoods are told of text alone.")
    return text_of(prompt)


def _judged(subset: Subset, row: int, text: str, likely: float | None) -> dict[str, Any]:
    """What the rules, or the label, say of an answer."""
    item, task = subset.items[row], subset.suite.task
    if task == "reply":
        verdict = judge(text, mean_logprob=likely)
        return {"outcome": verdict.outcome, "reason": verdict.reason}
    if task in ("name", "pick"):
        picked = named_choice(text, item.choices)
        return {"picked": picked, "correct": picked == item.answer}
    picked = last_number(text)
    return {"picked": picked, "correct": same_number(picked, item.answer)}


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]
