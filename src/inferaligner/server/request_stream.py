"""One HTTP request in the engine: its jobs, and their events on the event loop.

When the client disconnects, the jobs are cancelled and their rows are free at the next step.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from inferaligner.server.engine.engine import Engine
from inferaligner.server.engine.jobs import (
    Decided,
    EnginePrompt,
    Event,
    Failed,
    Finished,
    Job,
    Listener,
    Piece,
)
from inferaligner.server.engine.sampling import TokenLogprob
from inferaligner.server.errors import ApiError
from inferaligner.server_shared.gate_report import GateReport

Value = TypeVar("Value")
MakeJob = Callable[[str, EnginePrompt, Listener], Job]


@dataclass
class Choice:
    """One answer while it is generated."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Piece | Finished) -> None:
        """Adds an event."""
        self.text += event.text
        if isinstance(event, Finished):
            self.finished = event
        elif event.token is not None:
            self.tokens.append(event.token)
            if event.logprob is not None:
                self.logprobs.append(event.logprob)


class RequestStream:
    """The jobs of one request and their events. Choices are numbered as prompt · n + choice."""

    def __init__(self, engine: Engine, kind: str, prompts: Sequence[EnginePrompt], make: MakeJob) -> None:
        """Gives the jobs to the engine.

        Args:
            engine: of the server.
            kind: prefix of the request's id, as OpenAI's.
            prompts: one job is made for each.
            make: makes a job from its id, its prompt and its listener.

        Raises:
            QueueFullError: the engine's queue is full, or it is shutting down.
        """
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self._engine = engine
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listener(number: int) -> Listener:
            def receive(event: Event) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

            return receive

        several = len(prompts) > 1
        self.jobs = [
            make(f"{self.id}-{at}" if several else self.id, prompt, listener(at))
            for at, prompt in enumerate(prompts)
        ]
        self.decided: dict[int, Decided] = {}
        self.choices = [Choice() for job in self.jobs for _ in range(job.n)]
        self._early: list[tuple[int, Event]] = []
        engine.submit(self.jobs)

    async def until_decided(self) -> None:
        """Waits until the gate has decided on every prompt; other events are kept for `events`.

        Raises:
            ApiError: a job failed.
        """
        while len(self.decided) < len(self.jobs):
            number, event = await self._events.get()
            if isinstance(event, Failed):
                raise ApiError(event.message, status=event.status)
            if isinstance(event, Decided):
                self.decided[number] = event
            else:
                self._early.append((number, event))

    async def events(self) -> AsyncIterator[tuple[int, Piece | Finished]]:
        """Yields `(choice number, event)` until every choice is finished. Called after `until_decided`.

        Raises:
            ApiError: a job failed.
        """
        open_choices = len(self.choices)
        while open_choices:
            number, event = self._early.pop(0) if self._early else await self._events.get()
            if isinstance(event, Failed):
                raise ApiError(event.message, status=event.status)
            if isinstance(event, Decided):
                continue
            at = number * self.jobs[0].n + event.choice
            self.choices[at].add(event)
            open_choices -= isinstance(event, Finished)
            yield at, event

    async def complete(self) -> None:
        """Waits until every choice is finished.

        Raises:
            ApiError: a job failed.
        """
        await self.until_decided()
        async for _ in self.events():
            pass

    @property
    def finished(self) -> bool:
        """Whether every choice is finished."""
        return all(choice.finished is not None for choice in self.choices)

    def cancel(self) -> None:
        """Cancels the jobs unless they are finished. May be called twice."""
        if not self.finished:
            self._engine.cancel(self.jobs)

    # -- results ---------------------------------------------------------------------------------------

    def reports(self) -> list[GateReport]:
        """One report per prompt: the gate's, or of a monitor that opened one of its answers."""
        reports = []
        for number, job in enumerate(self.jobs):
            report = self.decided[number].report
            ends = [choice.finished for choice in self.choices[number * job.n : (number + 1) * job.n]]
            later = [end.report for end in ends if end is not None and end.report.open]
            reports.append(report if report.open or not later else later[0])
        return reports

    def report(self) -> dict[str, Any] | list[dict[str, Any]]:
        """The field `inferaligner` of the response: an object, or a list for several prompts."""
        reports = [report.public() for report in self.reports()]
        return reports[0] if len(reports) == 1 else reports

    def usage(self) -> dict[str, int]:
        """Token counts in OpenAI's format."""
        prompt = sum(len(job.prompt.tokens) for job in self.jobs)
        answer = sum(len(choice.tokens) for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


async def unless_disconnected(work: Awaitable[Value], receive: Callable[[], Awaitable[Any]]) -> Value | None:
    """Awaits `work`; if the client disconnects first, cancels it and returns None."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
