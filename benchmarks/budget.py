"""A run of several steps under one time budget, whose file always has all results so far.

Who calls what:
1. the caller makes a `BudgetedRun` and gives it `Step`s, the most important first;
2. a step begins if the time that it needs is left, and is cut off at its limit or at the budget's end;
3. the step's work hands in checks and figures through its `StepRecord`; every call writes the file.

A step that fails, runs out of memory or is cut off keeps what it handed in, and the next step begins.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

PASSED, FAILED, ERROR, CUT_OFF, SKIPPED, RUNNING = (
    "passed", "failed", "error", "cut off", "skipped", "running"
)  # fmt: skip
_MARGIN = 0.85  # of a step's limit: rounds that are timed stop by themselves before they are cut off


class _OutOfTime(BaseException):
    """Raised by the alarm; no `except Exception` of a library swallows it."""


class StepRecord:
    """The results of a running step."""

    def __init__(self, run: BudgetedRun, name: str, limit: float) -> None:
        self.entry: dict[str, Any] = {"status": RUNNING, "checks": []}
        self.deadline = time.monotonic() + _MARGIN * limit
        self._run = run
        self._name = name

    def check(self, name: str, fault: str | None, note: str = "") -> None:
        """Adds the outcome of a check: `fault` describes the failure; None if it passed."""
        found = {"name": name, "passed": fault is None, "note": note if fault is None else fault}
        self.entry["checks"].append(found)
        if fault is not None:
            self.say(f"FAILED {name}: {fault}")
        self._run.write()

    def error(self, name: str, reason: str) -> None:
        """Adds a part of the step that could not run here; the step continues."""
        self.entry.setdefault("errors", {})[name] = reason
        self.say(f"ERROR {name}: {reason}")
        self._run.write()

    def figures(self, values: Mapping[str, Any]) -> None:
        """Adds to the step's entry in the file."""
        self.entry.update(values)
        self._run.write()

    def say(self, text: str) -> None:
        """One line of progress."""
        self._run.say(f"{self._name}: {text}")

    def advance(self, done: int, total: int) -> None:
        """A line for every few rounds, as `run_rounds` calls it."""
        if done == total or done % 4 == 0:
            self.say(f"round {done} of {total}")


@dataclass(frozen=True)
class Step:
    """`needs` seconds must be left for it to begin; after `limit` seconds it is cut off."""

    name: str
    needs: float
    limit: float
    work: Callable[[StepRecord], None]


class BudgetedRun:
    """Runs steps and keeps the file. `begun` (of `time.monotonic`) is when the budget began."""

    def __init__(
        self,
        file: Path,
        facts: Mapping[str, Any],
        seconds: float,
        begun: float,
        earlier: Mapping[str, Any] | None = None,
    ) -> None:
        """`earlier` has the entries of an earlier run, of which the passed steps are kept."""
        self._file = file
        self._facts = dict(facts)
        self._seconds = seconds
        self._begun = begun
        kept = (earlier or {}).items()
        self.steps: dict[str, Any] = {name: entry for name, entry in kept if entry["status"] == PASSED}

    @property
    def left(self) -> float:
        """Seconds of the budget."""
        return self._begun + self._seconds - time.monotonic()

    def run(self, steps: Sequence[Step]) -> None:
        """Runs all steps in order, except the steps that passed in the earlier run."""
        for step in steps:
            if step.name in self.steps:
                self.say(f"{step.name}: passed in the earlier run")
            elif self.left < step.needs:
                note = f"{self.left:.0f} s were left; it needs {step.needs:.0f} s"
                self.steps[step.name] = {"status": SKIPPED, "checks": [], "note": note}
                self.say(f"{step.name}: skipped, {note}")
            else:
                self._run_step(step)
            self.write()

    def _run_step(self, step: Step) -> None:
        limit = min(step.limit, self.left)
        record = StepRecord(self, step.name, limit)
        self.steps[step.name] = record.entry
        self.say(f"{step.name}: begins, at most {limit:.0f} s")
        self.write()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        begin = time.monotonic()
        status = PASSED
        try:
            with _alarm(limit):
                step.work(record)
        except _OutOfTime:
            status, record.entry["note"] = CUT_OFF, f"cut off after {limit:.0f} s"
        # Whatever went wrong is this step's result, and the other steps have theirs to give.
        except Exception as error:
            status, record.entry["note"] = ERROR, describe(error)
        if status == PASSED and record.entry.get("errors"):
            status = ERROR
        if not all(check["passed"] for check in record.entry["checks"]):
            status = FAILED
        record.entry["status"] = status
        record.entry["seconds"] = round(time.monotonic() - begin, 2)
        note = f", {record.entry['note']}" if record.entry.get("note") else ""
        self.say(f"{step.name}: {status} after {record.entry['seconds']:.1f} s{note}")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def say(self, text: str) -> None:
        """A line with the elapsed and the remaining seconds, printed at once, also into a pipe."""
        elapsed = time.monotonic() - self._begun
        print(f"[{elapsed:5.0f} s, {max(self.left, 0):4.0f} s left] {text}", flush=True)

    def write(self) -> None:
        """Replaces the file by the whole report in one step."""
        elapsed = round(time.monotonic() - self._begun, 1)
        report = {**self._facts, "elapsed_seconds": elapsed, "steps": self.steps}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        new = self._file.with_name(self._file.name + ".new")
        new.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")
        os.replace(new, self._file)

    def exit_code(self) -> int:
        """1 if a check failed, 3 if a step ended in an error or was cut off, else 0."""
        found = {entry["status"] for entry in self.steps.values()}
        return 1 if FAILED in found else 3 if found & {ERROR, CUT_OFF} else 0


def describe(error: BaseException) -> str:
    """The kind of an error and the first line of its text, where that says enough."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:400]}" if lines else type(error).__name__


@contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
