"""`inferaligner score TARGET --aligner DIR --input SPEC`: the gate's decision on each prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inferaligner.cli.model_options import (
    AlignerPlace,
    ChatTemplate,
    Device,
    Dtype,
    ModelOptions,
    Quantization,
    Target,
    TrustRemoteCode,
    load_aligner,
    warn_of_format,
)
from inferaligner.cli.output_file import check_output_file, write_lines
from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import note, print_json_line
from inferaligner.prompts.images import written
from inferaligner.prompts.reading import read_prompts


def score(
    target: Target,
    aligner: AlignerPlace,
    source: Annotated[
        str,
        typer.Option(
            "--input",
            "-i",
            metavar="SPEC",
            help="Prompts: .txt, .jsonl, .json, .csv (FILE:column) or hf://dataset#column.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="File for the lines, not stdout.", show_default=False
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantization: Quantization = None,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Score prompts with the gate, without generating: JSON lines with prompt, score and open.

    A positive score opens the gate.
    """
    prompts = read_prompts(source)
    if output is not None:
        check_output_file(output, source)
    fitted = load_aligner(aligner)
    options = ModelOptions(dtype, device, quantization, chat_template, trust_remote_code)
    options.check(target)
    loaded = options.load(target, system=fitted.artifact.provenance.system_prompt)
    warn_of_format(fitted.artifact, loaded)
    with RichStages().stage("scoring", len(prompts)) as advance:
        decisions = fitted.score(loaded.model, loaded.reader, prompts, advance=advance)
    rows = [
        {**written(prompt), "score": decision.score, "open": decision.open}
        for prompt, decision in zip(prompts, decisions, strict=True)
    ]
    if output is None:
        for row in rows:
            print_json_line(row)
        return
    write_lines(output, rows)
    note(f"{len(rows)} prompts scored, {sum(d.open for d in decisions)} open. Written to {output}.")
