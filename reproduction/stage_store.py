"""The working folder of an experiment, and the record of its finished stages.

A stage is finished when its marker `<stage>.done.json` exists; the marker holds the stage's settings. If the
recipe has changed since, the stage raises an error instead of returning the old result.
"""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from inferaligner.errors import InferAlignerError, InputError
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump, plain

console = Console(stderr=True)


class OutOfTime(InferAlignerError):
    """The time limit is reached; the same command continues the run."""


@dataclass
class Clock:
    """The time limit of a run."""

    minutes: float | None = None
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float | None:
        """Remaining minutes; None without a limit."""
        return None if self.minutes is None else self.minutes - (time.monotonic() - self.begun) / 60

    def check(self, stage: str) -> None:
        """Raises `OutOfTime` if no time is left to begin a stage."""
        if self.left is not None and self.left <= 0:
            raise OutOfTime(
                f"The time is over before the stage {stage}. Run the same command again to continue."
            )


@dataclass(frozen=True)
class StageStore:
    """The folder of one experiment on one family."""

    folder: Path
    clock: Clock

    def of(self, other: str) -> StageStore:
        """The store of another experiment on the same family."""
        return StageStore(self.folder.parent / other, self.clock)

    def stage(
        self, name: str, settings: dict[str, Any], work: Callable[[], Any], outputs: Sequence[Path] = ()
    ) -> Any:
        """Runs a stage, unless it is finished.

        Args:
            name: Name of the stage.
            settings: Everything that the result depends on.
            work: Runs the stage; returns plain values, which JSON can hold.
            outputs: Files and folders that the stage writes.

        Returns:
            The result of `work`, now or at the time when the stage was finished.

        Raises:
            InputError: The stage was finished with other settings.
            OutOfTime: No time is left to begin it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.lock").open("w", encoding="utf-8") as lock:
            # Experiments that share a sibling may run at the same time: the second waits for the first.
            fcntl.flock(lock, fcntl.LOCK_EX)
            return self._stage(name, settings, work, outputs)

    def _stage(
        self, name: str, settings: dict[str, Any], work: Callable[[], Any], outputs: Sequence[Path]
    ) -> Any:
        marker = self.folder / f"{name}.done.json"
        wanted = plain(settings)
        if marker.is_file():
            known = json.loads(marker.read_text("utf-8"))
            if known["settings"] != wanted:
                changed = [k for k in wanted if known["settings"].get(k) != wanted[k]] or ["settings"]
                raise InputError(
                    f"The stage {name} in {self.folder} was done with other {', '.join(changed)}. Run it "
                    f"again with --redo {name}, or give another folder with --work."
                )
            if all(output.exists() for output in outputs):
                console.print(f"{name}: done already", style="dim")
                return known["found"]
        self.clock.check(name)
        console.rule(f"{self.folder.name}: {name}", align="left", style="dim")
        begun = time.monotonic()
        found = plain(work())
        record = {"settings": wanted, "found": found, "seconds": round(time.monotonic() - begun, 1)}
        replace_file(marker, (dump(record, indent=1) + "\n").encode())
        return found

    def seconds(self) -> dict[str, float]:
        """Seconds of each finished stage, of its last call."""
        return {
            file.name.removesuffix(".done.json"): json.loads(file.read_text("utf-8"))["seconds"]
            for file in sorted(self.folder.glob("*.done.json"))
        }

    def forget(self, stages: Sequence[str]) -> None:
        """Deletes the markers of stages, and the folders of their names."""
        for name in stages:
            marker = self.folder / f"{name}.done.json"
            if not marker.is_file() and not (self.folder / name).exists():
                known = ", ".join(self.seconds()) or "none"
                raise InputError(f"--redo {name}: no such stage in {self.folder}; there are {known}.")
            marker.unlink(missing_ok=True)
            if (self.folder / name).is_dir():
                shutil.rmtree(self.folder / name)
