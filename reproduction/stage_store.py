"""Where an experiment works, and which of its stages are finished there.

A stage is finished when its marker `<stage>.done.json` is on the disk, with the settings it was done with. A
recipe that has changed since is an error, never silently the old result.
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
    """The time that was given is over; the same command goes on from here."""


@dataclass
class Clock:
    """The time that a run was given."""

    minutes: float | None = None
    begun: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float | None:
        """Minutes; None if there is no limit."""
        return None if self.minutes is None else self.minutes - (time.monotonic() - self.begun) / 60

    def check(self, stage: str) -> None:
        """Raises `OutOfTime` where too little is left to begin a stage."""
        if self.left is not None and self.left <= 0:
            raise OutOfTime(f"The time is over before the stage {stage}. Run the same command again.")


@dataclass(frozen=True)
class StageStore:
    """The folder of one experiment on one family."""

    folder: Path
    clock: Clock

    def of(self, other: str) -> StageStore:
        """That of another experiment on the same family."""
        return StageStore(self.folder.parent / other, self.clock)

    def stage(
        self, name: str, settings: dict[str, Any], work: Callable[[], Any], outputs: Sequence[Path] = ()
    ) -> Any:
        """Does `work`, unless it is done; what it returned, which must be plain values.

        Raises:
            InputError: it was done with other settings.
            OutOfTime: no time is left to begin it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{name}.lock").open("w", encoding="utf-8") as lock:
            # Experiments that share a sibling may run side by side: the second waits for the first.
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
                    f"The stage {name} in {self.folder} was done with other {', '.join(changed)}. Do it anew "
                    f"with --redo {name}, or give another folder with --work."
                )
            if all(output.exists() for output in outputs):
                console.print(f"{name}: done already", style="dim")
                return known["found"]
        self.clock.check(name)
        console.rule(f"{self.folder.name}: {name}", align="left", style="dim")
        begun = time.monotonic()
        found = plain(work())
        told = {"settings": wanted, "found": found, "seconds": round(time.monotonic() - begun, 1)}
        replace_file(marker, (dump(told, indent=1) + "\n").encode())
        return found

    def seconds(self) -> dict[str, float]:
        """How long each finished stage took, in its last call."""
        return {
            file.name.removesuffix(".done.json"): json.loads(file.read_text("utf-8"))["seconds"]
            for file in sorted(self.folder.glob("*.done.json"))
        }

    def forget(self, stages: Sequence[str]) -> None:
        """Takes finished stages back, with what they wrote into folders of their name."""
        for name in stages:
            marker = self.folder / f"{name}.done.json"
            if not marker.is_file() and not (self.folder / name).exists():
                known = ", ".join(self.seconds()) or "none"
                raise InputError(f"--redo {name}: no such stage in {self.folder}; there are {known}.")
            marker.unlink(missing_ok=True)
            if (self.folder / name).is_dir():
                shutil.rmtree(self.folder / name)
