"""From logits to what the listeners hear: the next token of every row, its text, and how an answer ends.

Whatever goes wrong with one row's token ends that row's job, and no other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from inferaligner.server.engine.batch import OnFailure, Prefilled, Row
from inferaligner.server.engine.jobs import Event, Finished, FinishReason, Job, Piece
from inferaligner.server.engine.sampling import TokenLogprob, adjusted, draw, logprobs_of


def tell(job: Job, event: Event) -> None:
    """Tells the listener, unless nobody wants to know any more."""
    if not job.cancelled:
        job.listener(event)


class Speaker:
    """Chooses and tells tokens. `ends` are those that end an answer."""

    def __init__(self, ends: Collection[int], on_failure: OnFailure) -> None:
        self._ends = frozenset(ends)
        self._on_failure = on_failure

    def speak(self, rows: Sequence[Row], logits: Tensor, watched: Sequence[float] | None) -> set[int]:
        """Chooses and tells the next token of each row, from logits `[rows, vocabulary]`.

        Returns which rows ended.
        """
        peaks, best = logits.max(dim=-1)
        finite, greedy = torch.isfinite(peaks).tolist(), best.tolist()
        tokens: dict[int, int] = {}
        broken: set[Job] = set()
        for at, row in enumerate(rows):
            if row.job in broken or not finite[at]:
                if row.job not in broken:
                    broken.add(row.job)
                    self._on_failure(row.job, ArithmeticError("the model's output is not a number"))
                continue
            try:
                tokens[at] = self._choose(row, logits[at], greedy[at])
            except Exception as error:
                broken.add(row.job)
                self._on_failure(row.job, error)
        logprobs = self._logprobs(rows, logits, tokens)
        done = {at for at, row in enumerate(rows) if row.job in broken}
        for at, token in tokens.items():
            if at in done:
                continue
            try:
                ended = self._say(rows[at], token, logprobs.get(at), None if watched is None else watched[at])
            except Exception as error:
                broken.add(rows[at].job)
                self._on_failure(rows[at].job, error)
                ended = True
            if ended:
                done.add(at)
        return done | {at for at, row in enumerate(rows) if row.job in broken}

    def _choose(self, row: Row, logits: Tensor, greedy: int) -> int:
        sampling = row.job.sampling
        early = len(row.generated) < row.job.min_tokens
        if sampling.temperature == 0 and sampling.plain and not early and row.processors is None:
            return greedy
        if row.processors is not None:
            logits = row.processors.before(logits, row.generated)
        logits = adjusted(logits, sampling, row.said)
        if early:
            logits = logits.clone()
            logits[list(self._ends | set(row.job.stop_ids))] = -torch.inf
        if sampling.temperature > 0:
            logits = logits.float() / sampling.temperature
        if row.processors is not None:
            logits = row.processors.after(logits, row.generated)
        return (
            int(logits.argmax()) if sampling.temperature == 0 else draw(logits, sampling, row.random.random())
        )

    def _logprobs(
        self, rows: Sequence[Row], logits: Tensor, tokens: dict[int, int]
    ) -> dict[int, TokenLogprob]:
        wanted = [at for at in tokens if rows[at].job.logprobs is not None]
        if not wanted:
            return {}
        top = max(rows[at].job.logprobs or 0 for at in wanted)
        found = logprobs_of(logits[wanted], [tokens[at] for at in wanted], top)
        return {
            at: TokenLogprob(one.token, one.logprob, one.top[: rows[at].job.logprobs or 0])
            for at, one in zip(wanted, found, strict=True)
        }

    def _say(self, row: Row, token: int, logprob: TokenLogprob | None, watched: float | None) -> bool:
        """Tells one token; True if the answer ends with it."""
        job = row.job
        monitor = watched if job.trace else None
        row.generated.append(token)
        ends = (token in self._ends and not job.ignore_eos) or token in job.stop_ids
        if ends:
            text = row.text.finish()
            tell(job, Piece(row.choice, text, token, logprob, monitor))
            return self._finish(row, "", "stop", token if token in job.stop_ids else None)
        row.said[token] += 1
        text = row.text.push(token)
        tell(job, Piece(row.choice, text, token, logprob, monitor))
        if row.text.stopped_by is not None:
            return self._finish(row, "", "stop", row.text.stopped_by)
        if len(row.generated) >= job.max_tokens:
            rest = row.text.finish()
            stopped = row.text.stopped_by
            return self._finish(row, rest, "length" if stopped is None else "stop", stopped)
        return False

    def _finish(self, row: Row, text: str, reason: FinishReason, why: str | int | None) -> bool:
        tell(row.job, Finished(row.choice, text, reason, row.report, why))
        return True


def prompt_logprobs(prefilled: Prefilled) -> tuple[TokenLogprob, ...]:
    """Log probabilities of a prompt's tokens, where they were asked for; the first one has none."""
    if prefilled.prompt_logits is None:
        return ()
    tokens = prefilled.job.prompt.tokens
    found = [TokenLogprob(tokens[0], None)]
    for start in range(0, len(tokens) - 1, 256):  # a whole vocabulary per token: in parts
        stop = min(start + 256, len(tokens) - 1)
        found += logprobs_of(
            prefilled.prompt_logits[start:stop],
            tokens[start + 1 : stop + 1],
            prefilled.job.prompt_logprobs or 0,
        )
    return tuple(found)
