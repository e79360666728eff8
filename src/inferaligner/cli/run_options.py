"""The options of the commands that evaluate on suites and keep the answers in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inferaligner.cli.option_groups import REQUIRED, flag


@dataclass(frozen=True)
class RunOptions:
    """The folder of a run and its test prompts."""

    output: Path = flag(
        REQUIRED,
        "--output",
        "-o",
        metavar="DIR",
        help="Where to write; an interrupted run in it is continued.",
    )
    data: Path | None = flag(
        None,
        metavar="FOLDER",
        envvar="INFERALIGNER_DATA",
        help="Folder with public data sets, in their published form.",
    )
    seed: int = flag(0, help="Seed of the drawn prompts.")
    overwrite: bool = flag(False, "--overwrite", help="Discard the run in the output folder and start again.")
