"""`inferaligner fit TARGET --aligned MODEL -o DIR`: extract, calibrate, write the artifact."""

from __future__ import annotations

import math
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from inferaligner.cli.layer_ranges import read_layers
from inferaligner.cli.model_options import (
    AsJson,
    ChatTemplate,
    Device,
    Dtype,
    ModelOptions,
    Quantization,
    Target,
    TrustRemoteCode,
)
from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import note, print_json, results
from inferaligner.cli.traffic_options import check_shares, read_benign, warn_of_too_few
from inferaligner.errors import InputError
from inferaligner.prompts.reading import read_prompts

_DATA, _CHOICES = "Prompts", "Choices (default: made from data)"


class Where(str, Enum):
    """Which tokens are steered once the gate is open."""

    from_gate = "from_gate"
    all = "all"


def fit(
    target: Target,
    aligned: Annotated[
        str,
        typer.Option(
            metavar="MODEL", help="A sibling of TARGET that declines harmful requests.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Where to write the aligner.", show_default=False),
    ],
    harmful: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Harmful prompts instead of the shipped contrast set: .txt, .jsonl, .json, .csv "
            "(FILE:column) or hf://dataset#column. Goes with --harmless.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    harmless: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="Harmless prompts, best the harmful ones' twins.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    benign: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]SPEC",
            help="Prompts of your own traffic, which must not open the gate. May be repeated.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="The system prompt that the model is served with.",
            rich_help_panel=_DATA,
            show_default=False,
        ),
    ] = None,
    max_false_open: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="At most this share of --benign opens the gate (by default 0.02); without --benign, of the "
            "shipped ordinary prompts, which are harder than traffic (by default 0.08).",
            rich_help_panel=_CHOICES,
            show_default=False,
        ),
    ] = None,
    confidence: Annotated[
        float,
        typer.Option(
            metavar="SHARE",
            help="With which that is promised, for each kind of --benign traffic on its own.",
            rich_help_panel=_CHOICES,
        ),
    ] = 0.95,
    gate_layer: Annotated[
        int | None,
        typer.Option(
            min=0, help="Read the gate at this layer only.", rich_help_panel=_CHOICES, show_default=False
        ),
    ] = None,
    steer_layers: Annotated[
        str | None,
        typer.Option(
            metavar="LAYERS",
            help="Steer these layers: 12-18 or 12,13,20; counted from 0.",
            rich_help_panel=_CHOICES,
            show_default=False,
        ),
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option(
            help="The intervention strength, a factor on the extracted vectors (on unit ones with --paper).",
            rich_help_panel=_CHOICES,
            show_default=False,
        ),
    ] = None,
    positions: Annotated[
        Where | None,
        typer.Option(
            help="Steer from the prompt's last token on, or all of the prompt too.",
            rich_help_panel=_CHOICES,
            show_default=False,
        ),
    ] = None,
    monitor: Annotated[
        bool,
        typer.Option(
            "--monitor",
            help="Fit a monitor too: it reads answers while they are generated, and steers from the token on "
            "at which one turns harmful.",
            rich_help_panel=_CHOICES,
        ),
    ] = False,
    monitor_tokens: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            help="Goes with --monitor: it is fitted and calibrated on the first N tokens of answers.",
            rich_help_panel=_CHOICES,
        ),
    ] = 64,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="The paper's own choices for whatever is not given.", rich_help_panel=_CHOICES
        ),
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantization: Quantization = None,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Fit an aligner for TARGET: find the gate, take the vectors from the aligned model, choose where and how
    strongly to steer, and measure it on held-out prompts."""
    layers = None if steer_layers is None else read_layers(steer_layers)
    check_shares(max_false_open, confidence)
    _check_strength(strength)
    traffic = read_benign(benign or [])
    pair = _read_pair(harmful, harmless)

    from inferaligner.aligner import Aligner
    from inferaligner.artifact import check_output_folder
    from inferaligner.calibration.operating_point import OWN_LIMIT
    from inferaligner.calibration.samples import samples_from_lists

    if pair is not None:
        samples_from_lists(*pair, ("", ""))  # whatever is wrong with them is told now
    check_output_folder(output)
    options = ModelOptions(dtype, device, quantization, chat_template, trust_remote_code)
    options.check(target, aligned)
    if not paper:
        warn_of_too_few(traffic, OWN_LIMIT if max_false_open is None else max_false_open, confidence)

    ours = options.load(target, system=system)
    theirs = options.load(aligned, system=system)
    aligner = Aligner.fit(
        ours.model,
        ours.tokenizer,
        aligned=theirs.model,
        aligned_tokenizer=theirs.tokenizer,
        harmful=None if pair is None else pair[0],
        harmless=None if pair is None else pair[1],
        benign=traffic or None,
        max_false_open=max_false_open,
        confidence=confidence,
        gate_layer=gate_layer,
        steer_layers=layers,
        strength=strength,
        positions=None if positions is None else positions.value,
        paper=paper,
        monitor=monitor,
        monitor_tokens=monitor_tokens,
        system=system,
        target_name=target,
        aligned_name=aligned,
        sources=(str(harmful), str(harmless)),
        stages=RichStages(),
    )
    place = aligner.save_pretrained(output)

    from inferaligner.cli.artifact_view import as_json as described
    from inferaligner.cli.artifact_view import tables

    if as_json:
        print_json({"aligner": str(place), **described(aligner.artifact)})
        return
    for table in tables(aligner.artifact):
        results().print(table)
    note(f"Written to {place}. Try it: inferaligner chat {target} --aligner {place}")


def _read_pair(harmful: str | None, harmless: str | None) -> tuple[list[str], list[str]] | None:
    if harmful is None and harmless is None:
        return None
    if harmful is None or harmless is None:
        given, lacking = ("--harmful", "--harmless") if harmless is None else ("--harmless", "--harmful")
        raise InputError(
            f"{given} was given without {lacking}. Give both, or neither for the shipped contrast set."
        )
    return read_prompts(harmful), read_prompts(harmless)


def _check_strength(strength: float | None) -> None:
    if strength is not None and not (strength > 0 and math.isfinite(strength)):
        raise InputError(f"--strength is {strength}; expected a positive number, such as 0.2.")
