"""Side-by-side timing: every arm once per round, and ratios only between runs of one round.

A machine that is shared, or that warms up, changes speed by more than the differences that are looked for.
So the arms take turns (A B C, B C A, C A B, ...), each round gives one ratio per arm, and what is reported
is the median of those ratios with its quartiles, never a quotient of two averages.
"""

from __future__ import annotations

import gc
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

Clock = Literal["wall", "cpu"]
Arm = Callable[[], Mapping[str, float]]
"""Does the work once and returns seconds by metric."""
Advance = Callable[[int, int], None]
"""Called after every round with the number of rounds that ran and how many there are to be."""


class Stopwatch:
    """Marks moments without making the host wait; `seconds` does the waiting.

    On CUDA a mark is an event in the stream. On the CPU it is a reading of the clock: `wall`, or `cpu`, the
    processor time of this process, which does not grow while another process has the core.
    """

    def __init__(self, device: torch.device, clock: Clock = "wall") -> None:
        self.device = device
        self._read = time.process_time if clock == "cpu" else time.perf_counter

    def mark(self) -> object:
        """The present moment (on CUDA: when the device gets to it)."""
        if self.device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            return event
        return self._read()

    def seconds(self, begin: object, end: object) -> float:
        """Between two marks."""
        if isinstance(begin, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
            end.synchronize()
            return float(begin.elapsed_time(end)) / 1000
        assert isinstance(begin, float) and isinstance(end, float)
        return end - begin


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of one ratio per round."""

    median: float
    lower: float
    upper: float
    least: float
    greatest: float
    rounds: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """The spread of at least two values."""
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper, min(values), max(values), len(values))


@dataclass(frozen=True)
class Timings:
    """Seconds of every round, `seconds[metric][arm][round]`; rounds are comparable across arms."""

    seconds: dict[str, dict[str, list[float]]]

    def ratio(self, metric: str, arm: str, baseline: str) -> Spread:
        """How many times the baseline's duration `arm` took, round by round."""
        pairs = zip(self.seconds[metric][arm], self.seconds[metric][baseline], strict=True)
        return Spread.of([mine / base for mine, base in pairs])

    def more(self, metric: str, arm: str, baseline: str) -> float:
        """Median over the rounds of the seconds that `arm` took longer than the baseline."""
        pairs = zip(self.seconds[metric][arm], self.seconds[metric][baseline], strict=True)
        return statistics.median(mine - base for mine, base in pairs)

    def median(self, metric: str, arm: str) -> float:
        """Median duration in seconds."""
        return statistics.median(self.seconds[metric][arm])


def run_rounds(
    arms: Mapping[str, Arm],
    *,
    rounds: int,
    warmup: int,
    device: torch.device,
    deadline: float = math.inf,
    advance: Advance | None = None,
) -> Timings:
    """Runs every arm once per round, in an order that rotates; the first `warmup` rounds are not kept.

    After `deadline` (of `time.monotonic`) no round begins once two are kept: `Timings` says how many were.
    `advance` takes the place of the progress bar.
    """
    names = list(arms)
    kept: dict[str, dict[str, list[float]]] = {}
    numbers: Iterable[int] = range(warmup + rounds)
    if advance is None:
        bar = Console(stderr=True)
        numbers = track(range(warmup + rounds), description="rounds", console=bar, transient=True)
    for number in numbers:
        if number >= warmup + 2 and time.monotonic() > deadline:
            break
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            if device.type == "cuda":
                torch.cuda.synchronize()
            # A collection would strike one arm or another by chance.
            gc.collect()
            gc.disable()
            try:
                taken = arms[name]()
            finally:
                gc.enable()
            if number < warmup:
                continue
            for metric, seconds in taken.items():
                kept.setdefault(metric, {}).setdefault(name, []).append(seconds)
        if advance is not None:
            advance(number + 1, warmup + rounds)
    # In the order of the arms, whatever order the first round had.
    return Timings(
        {metric: {name: by_arm[name] for name in names if name in by_arm} for metric, by_arm in kept.items()}
    )


def report_console() -> Console:
    """Wide enough for the tables, also in a pipe."""
    return Console(highlight=False, width=max(100, Console().width))


def ratio_table(
    title: str,
    timings: Timings,
    metric: str,
    baseline: str,
    *,
    unit: str = "s",
    scale: float = 1.0,
    targets: Mapping[str, float] | None = None,
) -> Table:
    """One row per arm: its median duration (times `scale`, in `unit`), and its ratio to the baseline.

    A target is met when the median ratio is not above it.
    """
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for column in (unit, "more", "ratio", "quartiles", "range", "target"):
        table.add_column(column, justify="right", no_wrap=True)
    for arm in timings.seconds[metric]:
        duration = f"{scale * timings.median(metric, arm):.4g}"
        if arm == baseline:
            table.add_row(arm, duration, "", "1")
            continue
        spread = timings.ratio(metric, arm, baseline)
        target = (targets or {}).get(arm)
        table.add_row(
            arm,
            duration,
            f"{scale * timings.more(metric, arm, baseline):.3f}",
            f"{spread.median:.4f}",
            f"{spread.lower:.3f}-{spread.upper:.3f}",
            f"{spread.least:.3f}-{spread.greatest:.3f}",
            "" if target is None else f"{target:.2f} {'met' if spread.median <= target else 'MISSED'}",
        )
    return table


def write_json(
    file: Path, settings: Mapping[str, object], timings: Timings, baselines: Mapping[str, str]
) -> None:
    """Settings, machine, all durations, and the ratios to each metric's baseline."""
    report = {"settings": dict(settings), "machine": machine(), **measured(timings, baselines)}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(report, indent=2, default=str) + "\n", encoding="utf-8")


def measured(timings: Timings, baselines: Mapping[str, str]) -> dict[str, Any]:
    """All durations, and the ratios to each metric's baseline, as they stand in a JSON file."""
    ratios = {
        metric: {arm: asdict(timings.ratio(metric, arm, baselines[metric])) for arm in arms}
        for metric, arms in timings.seconds.items()
    }
    return {"ratios": ratios, "seconds_by_round": timings.seconds}


def machine() -> dict[str, str]:
    """The facts about the machine without which a figure means nothing."""
    facts = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "processor": _processor(),
        "threads": str(torch.get_num_threads()),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
        facts["cuda"] = str(torch.version.cuda)
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    named = {name.strip(): value.strip() for name, value in fields.items()}
    return f"{named.get('model name', platform.machine())} (model {named.get('model', '?')})"
