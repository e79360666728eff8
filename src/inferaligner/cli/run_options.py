"""The options of the commands that evaluate on suites and keep the answers in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inferaligner.cli.option_groups import REQUIRED, flag

MAX_NEW_TOKENS = 256
"""The default length limit of answers: the paper's, at which most answers end by themselves."""


@dataclass(frozen=True)
class RunOptions:
    """The folder of a run, its test prompts and the length of its answers."""

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
    max_new_tokens: int = flag(
        MAX_NEW_TOKENS, min=1, metavar="N", help="Length limit of answers, in tokens; most end earlier."
    )
    seed: int = flag(0, help="Seed of the drawn prompts.")
    overwrite: bool = flag(False, "--overwrite", help="Discard the run in the output folder and start again.")
