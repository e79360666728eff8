"""`inferaligner score TARGET --aligner DIR --input SPEC`: the gate's decision on each prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inferaligner.cli.model_options import AlignerPlace, ModelOptions, Target, load_aligner
from inferaligner.cli.output_file import check_output_file, write_lines
from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import note, print_json_line
from inferaligner.prompts.images import prompt_fields
from inferaligner.prompts.prompt_files import read_prompts


def score(
    *,
    target: Target,
    aligner: AlignerPlace,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            "-i",
            metavar="SPEC",
            help="Prompts: .txt, .jsonl, .json, .csv (FILE:column) or hf://dataset#column.",
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="File for the lines, not stdout."),
    ] = None,
    model: ModelOptions,
) -> None:
    """Score prompts with the gate, without generating: JSON lines with prompt, score and open.

    A positive score opens the gate.
    """
    prompts = read_prompts(source)
    if output is not None:
        check_output_file(output, source)
    fitted = load_aligner(aligner)
    loaded = model.load_for(fitted, target)
    with RichStages().stage("scoring", len(prompts)) as advance:
        decisions = fitted.score(loaded.model, loaded.reader, prompts, advance=advance)
    rows = [
        {**prompt_fields(prompt), "score": decision.score, "open": decision.open}
        for prompt, decision in zip(prompts, decisions, strict=True)
    ]
    if output is None:
        for row in rows:
            print_json_line(row)
        return
    write_lines(output, rows)
    note(f"{len(rows)} prompts scored, {sum(d.open for d in decisions)} open. Written to {output}.")
