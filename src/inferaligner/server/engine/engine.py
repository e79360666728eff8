"""The engine: one thread that owns the model, admits prompts, and decodes the running rows.

Every round does four things: run the functions given to `call`, drop cancelled jobs, run one pass over new
prompts if there is room, and run one decoding step of all rows. Rows join and leave between steps, so no
request waits for another one's answer to end.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from inferaligner.aligner import Aligner
from inferaligner.errors import InferAlignerError
from inferaligner.models.generation import end_tokens
from inferaligner.models.grouped_attention import grouped_attention
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.chat import encode_chats
from inferaligner.server.engine.batch import Prefilled, PrefillPass, Row, RunningBatch
from inferaligner.server.engine.decoding import TokenEmitter, notify, prompt_logprobs
from inferaligner.server.engine.detokenizer import TextStream
from inferaligner.server.engine.gate_decisions import GateDecisions
from inferaligner.server.engine.jobs import Decided, EnginePrompt, Event, Failed, Finished, Job
from inferaligner.server.errors import QueueFullError
from inferaligner.server.generation_defaults import GenerationDefaults
from inferaligner.server.settings import ServerSettings
from inferaligner.server_shared.gate_report import GateReport
from inferaligner.steering.end_check import EndCheck
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import SteeringPlan

Result = TypeVar("Result")


class Observer:
    """Receives reports of what the engine does, on the engine's thread. Methods here do nothing."""

    def decided(self, job: Job, report: GateReport) -> None:
        """The gate has decided on a prompt."""

    def opened(self, job: Job, report: GateReport) -> None:
        """A monitor has opened an answer."""

    def failed(self, job: Job | None, error: Exception) -> None:
        """A job could not be computed; None where the engine itself failed."""

    def stepped(self, rows: int, tokens: int, seconds: float) -> None:
        """A decoding step of `rows` rows made `tokens` tokens in `seconds`."""


@dataclass(frozen=True)
class Load:
    """Numbers of running rows and of waiting prompts."""

    running: int
    waiting: int


class Engine:
    """Answers jobs with one model and one aligner."""

    def __init__(
        self, loaded: LoadedModel, aligner: Aligner, settings: ServerSettings, observer: Observer
    ) -> None:
        self.aligner = aligner
        self._decisions = GateDecisions(aligner.artifact, settings)
        self.settings = settings
        self.defaults = GenerationDefaults(loaded.model)
        self._loaded = loaded
        self._observer = observer
        self._tokenizer = loaded.tokenizer
        self._emitter = TokenEmitter(end_tokens(loaded.model), self._failed)
        self._wake = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._stopping = False
        self._draining = False
        self._batch: RunningBatch | None = None
        self._thread = threading.Thread(target=self._run, name="inferaligner-engine", daemon=True)
        self._started: Future[None] = Future()

    # -- from any thread -----------------------------------------------------------------------------

    def start(self) -> None:
        """Starts the thread. Returns when the guard is active and the self-test has passed, or raises."""
        self._thread.start()
        self._started.result()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queues all of these jobs, or none.

        Raises:
            QueueFullError: the queue has no room for them, or the server is shutting down.
        """
        with self._wake:
            if self._stopping or self._draining or not self._thread.is_alive():
                raise QueueFullError("The server is shutting down.", status=503)
            if len(self._waiting) + len(jobs) > self.settings.max_queue:
                raise QueueFullError(
                    f"{len(self._waiting)} prompts are waiting, and at most {self.settings.max_queue} may. "
                    "Try again in a moment."
                )
            self._waiting.extend(jobs)
            self._wake.notify()

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancels jobs, waiting or running; their listeners receive no further event."""
        for job in jobs:
            job.cancelled = True
        with self._wake:
            self._wake.notify()

    def call(self, function: Callable[[], Result]) -> Future[Result]:
        """Runs a function on the engine's thread, between two steps.

        Raises:
            QueueFullError: the server is shutting down.
        """
        future: Future[Result] = Future()
        with self._wake:
            if self._stopping or not self._thread.is_alive():
                raise QueueFullError("The server is shutting down.", status=503)
            self._calls.append((function, future))
            self._wake.notify()
        return future

    def swap(self, aligner: Aligner) -> Future[None]:
        """Replaces the aligner with one that has the same vectors; running rows keep their decisions."""
        return self.call(lambda: self._swap(aligner))

    @property
    def load(self) -> Load:
        """Numbers of running rows and of waiting prompts now."""
        batch = self._batch
        return Load(0 if batch is None else len(batch.rows), len(self._waiting))

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def stop(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Ends the thread.

        Args:
            drain: whether running and waiting jobs are finished first.
            timeout: seconds to wait for them; None for no limit.
        """
        with self._wake:
            self._draining = True
            self._stopping = not drain
            self._wake.notify()
        self._thread.join(timeout)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if timeout is not None:
            self._thread.join(5)

    # -- on the engine's thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with grouped_attention(self._loaded.model):
                self._serve()
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)  # `start` waits for it

    def _serve(self) -> None:
        guard = self._guard(self.aligner)
        try:
            guard.__enter__()
            pad = self._tokenizer.pad_token_id
            self._batch = RunningBatch(
                self._loaded.model, guard, 0 if pad is None else pad, lambda job: self._decisions.factor(job)
            )
            self._self_test()
        except BaseException:
            guard.__exit__(None, None, None)
            raise
        self._started.set_result(None)
        try:
            while self._wait():
                self._round()
        finally:
            self._batch.guard.__exit__(None, None, None)
            self._fail_all("The server was shut down.", 503)

    def _wait(self) -> bool:
        assert self._batch is not None
        with self._wake:
            while not (self._stopping or self._waiting or self._calls or self._batch.rows):
                if self._draining:
                    return False
                self._wake.wait()
            return not self._stopping

    def _round(self) -> None:
        try:
            self._run_calls()
            self._drop_cancelled()
            self._admit()
            self._step()
        except (
            Exception
        ) as error:  # a defect of this program: the requests get an error, and the engine goes on
            self._observer.failed(None, error)
            self._fail_all(f"Internal error: {type(error).__name__}.", 500)

    def _run_calls(self) -> None:
        while self._calls:
            function, future = self._calls.popleft()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            assert self._batch is not None
            self._batch.use(self._batch.guard)  # the function may have run the model

    def _drop_cancelled(self) -> None:
        assert self._batch is not None
        rows = [at for at, row in enumerate(self._batch.rows) if not row.job.cancelled]
        self._batch.keep(rows)
        if any(job.cancelled for job in self._waiting):
            with self._wake:
                self._waiting = deque(job for job in self._waiting if not job.cancelled)

    def _admit(self) -> None:
        jobs = self._next_jobs()
        if not jobs:
            return
        assert self._batch is not None
        for source in self._batch.prefill(jobs, self._failed):
            joining = []
            for prefilled in source.prompts:
                try:
                    joining += [(prefilled, row) for row in self._begin(prefilled, source)]
                except Exception as error:
                    self._failed(prefilled.job, error)
            rows = [row for _, row in joining]
            logits = torch.stack([prefilled.logits for prefilled, _ in joining]) if joining else None
            done = set() if logits is None else self._emitter.emit(rows, logits, None)
            self._batch.admit(source, [pair for at, pair in enumerate(joining) if at not in done])

    def _next_jobs(self) -> list[Job]:
        """Takes jobs from the front of the queue while rows, cache and prefill tokens allow it."""
        assert self._batch is not None
        settings, picked, rows, tokens = self.settings, list[Job](), len(self._batch.rows), 0
        columns = self._batch.columns
        with self._wake:
            while self._waiting:
                job = self._waiting[0]
                if job.cancelled:
                    self._waiting.popleft()
                    continue
                columns = max(columns, job.columns)
                alone = rows == 0
                if not alone and (
                    rows + job.n > settings.max_rows or (rows + job.n) * columns > settings.cache_tokens
                ):
                    break
                tokens += len(job.prompt.tokens)
                whole = (job.prompt_logprobs is not None, picked and picked[0].prompt_logprobs is not None)
                alike = not picked or (job.prompt.seen is None) == (picked[0].prompt.seen is None)
                if picked and (tokens > settings.prefill_tokens or whole[0] != whole[1] or not alike):
                    break
                picked.append(self._waiting.popleft())
                rows += job.n
        return picked

    def _begin(self, prefilled: Prefilled, source: PrefillPass) -> list[Row]:
        """Sends the decision on a prompt. Returns the rows to generate, none where no answer is needed."""
        job = prefilled.job
        report = self._decisions.report(job, prefilled.score)
        opened = source.carried.opened_at()[prefilled.row]
        if opened and not report.open:  # by the monitor, which has read a begun answer
            report = report.opened_by_monitor(opened, self._decisions.action(job, True))
        self._observer.decided(job, report)
        job.listener(Decided(report, prompt_logprobs(prefilled)))
        if report.action == "refused" or job.max_tokens == 0:
            refused = report.action == "refused"
            for choice in range(job.n):
                text = (self.settings.refusal_text or "") if refused else ""
                job.listener(Finished(choice, text, "content_filter" if refused else "length", report))
            return []
        before = job.prompt.tokens if job.raw else ()
        return [
            Row(
                job,
                choice,
                report,
                TextStream(self._tokenizer, job.stop, before),
                job.sampling.generator(choice),
                prefilled.shift,
                self.defaults.row(job.prompt.tokens, job.max_tokens, job.sampling),
            )
            for choice in range(job.n)
        ]

    def _step(self) -> None:
        assert self._batch is not None
        if not self._batch.rows:
            return
        began = time.perf_counter()
        logits = self._batch.step(self._failed)
        rows = self._batch.rows
        if not rows:
            return
        opened = self._batch.opened_at()
        monitor_scores = self._batch.monitor_scores() if any(row.job.trace for row in rows) else None
        for row, token in zip(rows, opened, strict=True):
            if token and not row.report.open:
                row.report = row.report.opened_by_monitor(token, self._decisions.action(row.job, True))
                self._observer.opened(row.job, row.report)
        done = self._emitter.emit(rows, logits, monitor_scores)
        self._batch.keep([at for at in range(len(rows)) if at not in done])
        self._observer.stepped(len(rows), len(rows), time.perf_counter() - began)

    # -- decisions -------------------------------------------------------------------------------------

    def _guard(self, aligner: Aligner) -> Guard:
        settings, model = self.settings, self._loaded.model
        aligner.check(model, self._loaded.reader)
        # The server's `prompts.py` has already refused the prompts that are not allowed.
        ends = EndCheck.of(self._loaded.reader, "allow", calibrated=aligner.artifact.end_gate is not None)
        if settings.on_open == "refuse" or aligner.artifact.gate_only:
            # An open row gets a fixed text, so only the guard's decision is needed.
            return Guard(model, aligner.gate_plan(), "never", end_check=ends)
        plan: SteeringPlan = aligner.plan(monitor=settings.monitor)
        return Guard(model, plan, "never" if settings.shadow else "gate", end_check=ends)

    def _swap(self, aligner: Aligner) -> None:
        assert self._batch is not None
        fresh = self._guard(aligner)
        former = self._batch.guard
        former.__exit__(None, None, None)
        try:
            fresh.__enter__()
        except BaseException:
            former.__enter__()
            raise
        self._batch.use(fresh)
        self.aligner, self._decisions = aligner, GateDecisions(aligner.artifact, self.settings)

    # -- failures --------------------------------------------------------------------------------------

    def _failed(self, job: Job, error: Exception) -> None:
        self._observer.failed(job, error)
        if isinstance(error, InferAlignerError):
            message, status = str(error), 400
        else:
            message, status = f"The model could not compute this request ({type(error).__name__}).", 500
        notify(job, Failed(message, status))
        job.cancelled = True

    def _fail_all(self, message: str, status: int) -> None:
        assert self._batch is not None
        with self._wake:
            jobs = [*dict.fromkeys(row.job for row in self._batch.rows), *self._waiting]
            self._waiting.clear()
            calls = list(self._calls)
            self._calls.clear()
        self._batch.keep([])
        for job in jobs:
            notify(job, Failed(message, status))
            job.cancelled = True
        for _, future in calls:
            future.cancel()

    def _self_test(self) -> None:
        """Generates answers to two short prompts in the way of requests. Raises if that fails."""
        events: list[Event] = []
        (ids,) = encode_chats(self._loaded.reader, ["Hello"])
        observer, self._observer = self._observer, Observer()
        try:
            for extra in ([], ids[-1:]):
                turn_end = len(ids) if extra else None
                prompt = EnginePrompt((*ids, *extra), turn_end)
                self._waiting.append(Job("self-test", prompt, events.append, max_tokens=2, ignore_eos=True))
            assert self._batch is not None
            self._admit()
            while self._batch.rows:
                self._step()
        finally:
            self._observer = observer
        failed = [event for event in events if isinstance(event, Failed)]
        if failed:
            raise InferAlignerError(f"The start-up self-test failed: {failed[0].message}")
