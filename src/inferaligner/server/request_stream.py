"""A request under way: its jobs in the engine, and what they tell, brought to the event loop.

Whoever stops listening, the client that vanished included, lets the jobs go: their rows are free at the next
step.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from inferaligner.server.engine.engine import Engine
from inferaligner.server.engine.jobs import Decided, Event, Failed, Finished, Job, Listener, Piece, Prompt
from inferaligner.server.engine.sampling import TokenLogprob
from inferaligner.server.errors import ApiError
from inferaligner.serving.gate_report import GateReport

Value = TypeVar("Value")
MakeJob = Callable[[str, Prompt, Listener], Job]


@dataclass
class Choice:
    """One answer as it grows."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finished: Finished | None = None

    def add(self, event: Piece | Finished) -> None:
        """More of it."""
        self.text += event.text
        if isinstance(event, Finished):
            self.finished = event
        elif event.token is not None:
            self.tokens.append(event.token)
            if event.logprob is not None:
                self.logprobs.append(event.logprob)


class Exchange:
    """The jobs of one request. Choices are numbered over all prompts: prompt · n + choice."""

    def __init__(self, engine: Engine, kind: str, prompts: Sequence[Prompt], make: MakeJob) -> None:
        """Raises `QueueFullError` if the engine takes no more."""
        self.id = f"{kind}-{uuid.uuid4().hex}"
        self._engine = engine
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def listener(number: int) -> Listener:
            def hear(event: Event) -> None:
                if not loop.is_closed():
                    loop.call_soon_threadsafe(self._events.put_nowait, (number, event))

            return hear

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
        """Returns when the gate has decided on every prompt; what comes meanwhile is kept.

        Raises `ApiError` for what the engine could not compute.
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
        """`(choice number, event)` until every choice is finished; after `until_decided`."""
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
        """Waits for everything."""
        await self.until_decided()
        async for _ in self.events():
            pass

    @property
    def finished(self) -> bool:
        """Whether every choice has come to its end."""
        return all(choice.finished is not None for choice in self.choices)

    def cancel(self) -> None:
        """Lets go of what is not finished; a second time it does nothing."""
        if not self.finished:
            self._engine.cancel(self.jobs)

    # -- what became of it -----------------------------------------------------------------------------

    def reports(self) -> list[GateReport]:
        """One per prompt: the decision, or what a monitor made of it in any of its answers."""
        found = []
        for number, job in enumerate(self.jobs):
            report = self.decided[number].report
            ends = [choice.finished for choice in self.choices[number * job.n : (number + 1) * job.n]]
            later = [end.report for end in ends if end is not None and end.report.open]
            found.append(report if report.open or not later else later[0])
        return found

    def report(self) -> dict[str, Any] | list[dict[str, Any]]:
        """As an answer carries it: an object, or a list for several prompts."""
        told = [report.public() for report in self.reports()]
        return told[0] if len(told) == 1 else told

    def usage(self) -> dict[str, int]:
        """Token counts."""
        prompt = sum(len(job.prompt.tokens) for job in self.jobs)
        answer = sum(len(choice.tokens) for choice in self.choices)
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


async def unless_gone(work: Awaitable[Value], receive: Callable[[], Awaitable[Any]]) -> Value | None:
    """The work's result; None, and the work cancelled, if the client goes away before."""
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(gone(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        for each in (task, watch):
            each.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def gone(receive: Callable[[], Awaitable[Any]]) -> None:
    """Returns when the client has gone away."""
    while (await receive())["type"] != "http.disconnect":
        pass
