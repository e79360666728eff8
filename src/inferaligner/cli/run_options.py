"""The options of the commands that evaluate on suites and keep the answers in a folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer


@dataclass(frozen=True)
class RunOptions:
    """The folder of a run and its test prompts."""

    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write; a run there is continued.")
    ]
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", envvar="INFERALIGNER_DATA", help="Public sets as published."),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the drawn prompts.")] = 0
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False
