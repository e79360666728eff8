"""From logits to events: the next token of every row, its text, and the end of an answer.

An error with the token of one row ends the job of that row and no other.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from inferaligner.server.engine.batch import OnFailure, Prefilled, Row
from inferaligner.server.engine.jobs import Event, Finished, FinishReason, Job, Piece
from inferaligner.server.engine.sampling import TokenLogprob, adjusted, draw, logprobs_of


def notify(job: Job, event: Event) -> None:
    """Sends an event to the job's listener, unless the job was cancelled."""
    if not job.cancelled:
        job.listener(event)


class TokenEmitter:
    """Chooses the next token of each row and sends it to the job's listener."""

    def __init__(self, ends: Collection[int], on_failure: OnFailure) -> None:
        """`ends` are the tokens that end an answer; `on_failure` is called for a job that fails."""
        self._ends = frozenset(ends)
        self._on_failure = on_failure

    def emit(self, rows: Sequence[Row], logits: Tensor, monitor_scores: Sequence[float] | None) -> set[int]:
        """Chooses and sends the next token of each row.

        Args:
            rows: the running rows.
            logits: `[rows, vocabulary]`.
            monitor_scores: running score of the monitor per row; None where no row has `trace`.

        Returns:
            Indices of the rows that ended.
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
                ended = self._emit_token(
                    rows[at], token, logprobs.get(at), None if monitor_scores is None else monitor_scores[at]
                )
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
        logits = adjusted(logits, sampling, row.counts)
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
        entries = logprobs_of(logits[wanted], [tokens[at] for at in wanted], top)
        return {
            at: TokenLogprob(one.token, one.logprob, one.top[: rows[at].job.logprobs or 0])
            for at, one in zip(wanted, entries, strict=True)
        }

    def _emit_token(
        self, row: Row, token: int, logprob: TokenLogprob | None, monitor_scores: float | None
    ) -> bool:
        """Sends one token. Returns True if the answer ends with it."""
        job = row.job
        monitor = monitor_scores if job.trace else None
        row.generated.append(token)
        ends = (token in self._ends and not job.ignore_eos) or token in job.stop_ids
        if ends:
            text = row.text.finish()
            notify(job, Piece(row.choice, text, token, logprob, monitor))
            return self._finish(row, "", "stop", token if token in job.stop_ids else None)
        row.counts[token] += 1
        text = row.text.push(token)
        notify(job, Piece(row.choice, text, token, logprob, monitor))
        if row.text.stopped_by is not None:
            return self._finish(row, "", "stop", row.text.stopped_by)
        if len(row.generated) >= job.max_tokens:
            rest = row.text.finish()
            stopped = row.text.stopped_by
            return self._finish(row, rest, "length" if stopped is None else "stop", stopped)
        return False

    def _finish(self, row: Row, text: str, reason: FinishReason, why: str | int | None) -> bool:
        notify(row.job, Finished(row.choice, text, reason, row.report, why))
        return True


def prompt_logprobs(prefilled: Prefilled) -> tuple[TokenLogprob, ...]:
    """Log probabilities of a prompt's tokens, where the job requests them; the first token has none."""
    if prefilled.prompt_logits is None:
        return ()
    tokens = prefilled.job.prompt.tokens
    logprobs = [TokenLogprob(tokens[0], None)]
    for start in range(0, len(tokens) - 1, 256):  # in parts: each token needs a row of the vocabulary's size
        stop = min(start + 256, len(tokens) - 1)
        logprobs += logprobs_of(
            prefilled.prompt_logits[start:stop],
            tokens[start + 1 : stop + 1],
            prefilled.job.prompt_logprobs or 0,
        )
    return tuple(logprobs)
