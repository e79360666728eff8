"""The running rows, and the forward passes over them.

A step is one forward pass over all running rows, one token each. New prompts run in a pass of their own and
join afterwards. If a pass fails, it is repeated with each half of the rows, down to the row that cannot be
computed, so that only this row's request fails.
"""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicCache

from inferaligner.models.anatomy import input_device
from inferaligner.models.kv_cache import cache_argument
from inferaligner.prompts.encoding import own_positions, seen_inputs
from inferaligner.server.engine.cache import RunningCache
from inferaligner.server.engine.detokenizer import TextStream
from inferaligner.server.engine.jobs import Job
from inferaligner.server.generation_defaults import RowProcessors
from inferaligner.server_shared.gate_report import GateReport
from inferaligner.steering.guard import Guard
from inferaligner.steering.row_state import CarriedRows

OnFailure = Callable[[Job, Exception], None]

# Cost of one more pass over new prompts, as a number of prompt tokens: on a CPU the pass reads the weights
# once more, on an accelerator a small pass leaves most of the device idle.
_PASS_ON_CPU, _PASS_ON_ACCELERATOR = 24, 1024


@dataclass(eq=False)
class Row:
    """One answer that is being generated: a row of the batch."""

    job: Job
    choice: int
    report: GateReport
    text: TextStream
    random: Random
    shift: int = 0  # see `Prefilled`
    processors: RowProcessors | None = None
    generated: list[int] = field(default_factory=list)
    counts: Counter[int] = field(default_factory=Counter)

    @property
    def last(self) -> int:
        """The input token of the next step."""
        return self.generated[-1]


@dataclass
class Prefilled:
    """The result of a pass for one prompt."""

    job: Job
    row: int  # in the cache of the pass
    score: float  # of the gate
    logits: Tensor  # [vocabulary], of the prompt's last token
    shift: int  # position of the next token minus the number of prompt tokens
    prompt_logits: Tensor | None  # [tokens, vocabulary], where the job requests them


@dataclass
class PrefillPass:
    """One pass over new prompts. `carried` is the guard's state of its rows."""

    prompts: list[Prefilled]
    cache: Cache
    carried: CarriedRows


class RunningBatch:
    """The running rows, their cache and their guard. Used by the engine's thread alone."""

    def __init__(self, model: Any, guard: Guard, pad: int, factor: Callable[[Job], float | None]) -> None:
        """Makes an empty batch.

        Args:
            model: the target model.
            guard: an active guard on the model.
            pad: token id for padding.
            factor: returns the factor on the plan's strength for a job's rows; None for 1.
        """
        self.rows: list[Row] = []
        self.guard = guard
        self._model = model
        self._pad = pad
        self._factor = factor
        self._cache = RunningCache()
        self._carried: CarriedRows | None = None
        self._loaded = False  # whether the guard holds the state of these rows, not of a prefill
        names = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in names
        self._takes_keep = "logits_to_keep" in names
        self._cache_argument = cache_argument(model)
        self._device = input_device(model)
        self._own_positions = own_positions(model.config)

    @property
    def columns(self) -> int:
        """Largest number of columns that the present rows can need."""
        return max((row.job.columns for row in self.rows), default=0)

    # -- new prompts ---------------------------------------------------------------------------------

    def prefill(self, jobs: Sequence[Job], on_failure: OnFailure) -> Iterator[PrefillPass]:
        """Runs new prompts through the model, prompts of similar length in one pass.

        Yields:
            Each pass as soon as it is done, so that its first tokens need not wait for the other passes.
        """
        pass_cost = _PASS_ON_CPU if self._device.type == "cpu" else _PASS_ON_ACCELERATOR
        for group in length_groups(jobs, pass_cost):
            self._loaded = False
            yield from self._passes(group, on_failure)

    @torch.no_grad()
    def _passes(self, jobs: Sequence[Job], on_failure: OnFailure) -> list[PrefillPass]:
        """Runs one pass, or several if it fails."""
        try:
            return [self._prefill(jobs)]
        except Exception as error:
            if len(jobs) == 1:
                on_failure(jobs[0], error)
                return []
        middle = len(jobs) // 2
        return [*self._passes(jobs[:middle], on_failure), *self._passes(jobs[middle:], on_failure)]

    def _prefill(self, jobs: Sequence[Job]) -> PrefillPass:
        rows = [job.prompt.tokens for job in jobs]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self._pad)
        mask = torch.zeros_like(ids)
        for at, tokens in enumerate(rows):
            ids[at, width - len(tokens) :] = torch.tensor(tokens)
            mask[at, width - len(tokens) :] = 1
        whole = any(job.prompt_logprobs is not None for job in jobs)
        cache = DynamicCache()
        arguments = self._arguments(ids, mask, cache)
        if jobs[0].prompt.seen is not None:  # then all of them have pictures
            seen = seen_inputs([job.prompt.seen or () for job in jobs], "left")
            more = {name: value.to(self._device) for name, value in seen.items() if name not in arguments}
            arguments |= more
        if self._takes_positions and not (self._own_positions and jobs[0].prompt.seen is not None):
            arguments["position_ids"] = (mask.cumsum(-1) - 1).clamp_min(0).to(self._device)
        if self._takes_keep and not whole:
            arguments["logits_to_keep"] = 1
        factors = [self._factor(job) for job in jobs]
        with ExitStack() as stack:
            if any(factor is not None for factor in factors):
                stack.enter_context(self.guard.strengths([1.0 if f is None else f for f in factors]))
            output = self._model(**arguments)
        carried = self.guard.carried()
        scores = carried.scores.tolist()
        last = output.logits[:, -1].float()
        shifts = [0] * len(jobs)
        if self._own_positions and jobs[0].prompt.seen is not None:
            # A picture takes fewer positions than tokens in such models; the pass has computed how many.
            shifts = [int(value) for value in self._model.base_model.rope_deltas.flatten().tolist()]
        prompts = [
            Prefilled(
                job,
                at,
                scores[at],
                last[at],
                shifts[at],
                output.logits[at, -len(job.prompt.tokens) :] if job.prompt_logprobs is not None else None,
            )
            for at, job in enumerate(jobs)
        ]
        return PrefillPass(prompts, cache, carried)

    def admit(self, source: PrefillPass, rows: Sequence[tuple[Prefilled, Row]]) -> None:
        """Adds rows of a prefill that already have their first token."""
        if not rows:
            return
        picked = [prefilled.row for prefilled, _ in rows]
        self._cache.admit(source.cache, picked, [len(p.job.prompt.tokens) for p, _ in rows])
        fresh = source.carried.select(picked)
        self._carried = fresh if self._carried is None else CarriedRows.join([self._carried, fresh])
        self.rows += [row for _, row in rows]
        self._loaded = False

    # -- decoding ------------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, on_failure: OnFailure) -> Tensor:
        """Runs one decoding step of all rows.

        Rows that cannot be computed leave the batch; `on_failure` is called with their jobs.

        Returns:
            Logits `[rows, vocabulary]` (float32) of the remaining rows.
        """
        try:
            return self._step()
        except Exception as error:
            if len(self.rows) == 1:
                (row,) = self.rows
                self.keep([])
                on_failure(row.job, error)
                return torch.empty(0, 0)
        middle = len(self.rows) // 2
        halves = [self._split(range(middle)), self._split(range(middle, len(self.rows)))]
        logits = [half.step(on_failure) for half in halves]
        self._adopt([half for half in halves if half.rows])
        return torch.cat([part for part in logits if len(part)]) if self.rows else torch.empty(0, 0)

    def _step(self) -> Tensor:
        assert self._carried is not None
        if not self._loaded:
            self.guard.carry_on(self._carried, self._cache)
            self._loaded = True
        ids = torch.tensor([[row.last] for row in self.rows])
        self._cache.reserve()
        arguments = self._arguments(ids, self._cache.mask(self._device), self._cache)
        if self._takes_positions:
            after = [length + row.shift for length, row in zip(self._cache.lengths, self.rows, strict=True)]
            arguments["position_ids"] = torch.tensor(after, device=self._device)[:, None]
        before = self._carried.select(range(len(self.rows))) if self._carried.watch is not None else None
        try:
            logits: Tensor = self._model(**arguments).logits[:, -1].float()
            if logits.device.type != "cpu":
                torch.cuda.synchronize(logits.device)  # so that an error of the device is raised in this step
        except BaseException:
            if before is not None:  # the failed pass may have updated the monitor
                self._carried = before
            self._loaded = False
            raise
        self._cache.advance()
        return logits

    def monitor_scores(self) -> list[float] | None:
        """The monitor's running score of each row; None without a monitor. Waits for the device."""
        if self._carried is None or self._carried.watch is None:
            return None
        return [float(value) for value in self._carried.watch.latest.tolist()]

    def opened_at(self) -> list[int]:
        """Per row, the number of the generated token at which the monitor opened it; 0 for none."""
        return [] if self._carried is None else self._carried.opened_at()

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these (indices)."""
        if len(rows) == len(self.rows):
            return
        order = self._cache.keep(rows)
        self.rows = [self.rows[at] for at in order]
        self._carried = self._carried.select(order) if self._carried is not None and order else None
        self._loaded = False

    def use(self, guard: Guard) -> None:
        """Replaces the guard. The new one must be active, the former one must not be."""
        self.guard = guard
        self._loaded = False

    # -- after a failure -----------------------------------------------------------------------------

    def _split(self, rows: Sequence[int]) -> RunningBatch:
        assert self._carried is not None
        part = RunningBatch(self._model, self.guard, self._pad, self._factor)
        part.rows = [self.rows[row] for row in rows]
        part._cache = self._cache.split(rows)
        part._carried = self._carried.select(rows)
        return part

    def _adopt(self, parts: Sequence[RunningBatch]) -> None:
        self.rows = [row for part in parts for row in part.rows]
        carried = [part._carried for part in parts if part._carried is not None]
        self._cache.clear()
        for part in parts:
            self._cache.absorb(part._cache)
        self._carried = CarriedRows.join(carried) if carried else None
        self._loaded = False

    def _arguments(self, ids: Tensor, mask: Tensor, cache: Any) -> dict[str, Any]:
        return {
            "input_ids": ids.to(self._device),
            "attention_mask": mask.to(self._device),
            self._cache_argument: cache,
            "use_cache": True,
        }


def length_groups(jobs: Sequence[Job], pass_cost: int) -> list[list[Job]]:
    """Divides jobs into passes so that padding and passes together cost least.

    In one pass, a long prompt would make every short one as expensive as itself.

    Args:
        jobs: jobs with new prompts.
        pass_cost: cost of one more pass, as a number of prompt tokens.

    Returns:
        The passes, shortest prompts first.
    """
    order = sorted(jobs, key=lambda job: len(job.prompt.tokens))
    # best[n]: the lowest cost of the first n jobs, and the index at which their last pass begins.
    best: list[tuple[int, int]] = [(0, 0)]
    for end, job in enumerate(order, start=1):
        length = len(job.prompt.tokens)
        costs = ((best[start][0] + length * (end - start) + pass_cost, start) for start in range(end))
        best.append(min(costs))
    passes: list[list[Job]] = []
    end = len(order)
    while end:
        start = best[end][1]
        passes.insert(0, order[start:end])
        end = start
    return passes
