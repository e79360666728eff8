"""Progress on stderr: bars on a terminal, one line per finished stage in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from inferaligner.cli.terminal import messages, note

# Shorter stages have no line in a log.
_WORTH_A_LINE_SECONDS = 0.5


class RichStages:
    """`inferaligner.fit.progress.Progress`, shown to a person."""

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """Shows a bar of `total` steps, or a count of steps while the total is unknown."""
        console = messages()
        if not console.is_terminal:
            with self._line(name) as advance:
                yield advance
            return
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        with bar:
            task = bar.add_task(f"{name:<34}", total=total)
            yield lambda steps: bar.advance(task, steps)
            done = int(bar.tasks[0].completed)
            bar.update(task, total=max(done, 1), completed=max(done, 1))

    @contextmanager
    def _line(self, name: str) -> Iterator[Callable[[int], None]]:
        begun, done = time.monotonic(), 0

        def advance(steps: int) -> None:
            nonlocal done
            done += steps

        yield advance
        seconds = time.monotonic() - begun
        if seconds >= _WORTH_A_LINE_SECONDS:
            note(f"{name}: {f'{done} ' if done else ''}done in {seconds:.1f} s")

    def note(self, text: str) -> None:
        """Prints a note."""
        note(text)
