"""`inferaligner fit TARGET --aligned MODEL -o DIR`: extract, calibrate, write the artifact."""

from __future__ import annotations

import math
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from inferaligner.cli.recording_engine import Engine, check_engine, recorder_of
from inferaligner.cli.terminal import check_text, note, print_json, results
from inferaligner.cli.traffic_options import check_shares, read_benign, warn_of_too_few
from inferaligner.errors import InputError
from inferaligner.prompts.images import Prompt
from inferaligner.prompts.prompt_files import read_prompts

if TYPE_CHECKING:
    from inferaligner.models.loading import LoadedModel

_DATA, _CHOICES = "Prompts", "Choices (default: made from data)"
_MAP = "An aligned model of another width or depth"


class Where(str, Enum):
    """Which tokens are steered once the gate is open."""

    from_gate = "from_gate"
    all = "all"


class Way(str, Enum):
    """How the guidance of a model of another family reaches the target."""

    answers = "answers"
    map = "map"


class Linear(str, Enum):
    """Linear maps between two models' activations."""

    ridge = "ridge"
    procrustes = "procrustes"


class Match(str, Enum):
    """How the layers of two models are matched."""

    best = "best"
    depth = "depth"


class With(str, Enum):
    """Whether labelled prompts are drawn into pictures."""

    none = "none"
    some = "some"


def fit(
    target: Target,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Where to write the aligner.", show_default=False),
    ],
    aligned: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A model that declines harmful requests: best a sibling of TARGET, else any other "
            "(see --carry). Without one the aligner is a gate alone, for --on-open refuse.",
            show_default=False,
        ),
    ] = None,
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
    pictures: Annotated[
        With,
        typer.Option(
            help="For a target that sees: show it some of the labelled prompts in pictures too.",
            rich_help_panel=_DATA,
        ),
    ] = With.none,
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
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Goes with --monitor: it is fitted and calibrated on the first N tokens of answers (by "
            "default 64).",
            rich_help_panel=_CHOICES,
            show_default=False,
        ),
    ] = None,
    paper: Annotated[
        bool,
        typer.Option(
            "--paper", help="The paper's own choices for whatever is not given.", rich_help_panel=_CHOICES
        ),
    ] = False,
    carry: Annotated[
        Way | None,
        typer.Option(
            help="How it guides: by vectors for TARGET that are learned from its answers (default), or by "
            "its own vectors through a linear map. A sibling guides by its own vectors as they are, unless "
            "answers are asked for.",
            rich_help_panel=_MAP,
            show_default=False,
        ),
    ] = None,
    map_kind: Annotated[
        Linear | None,
        typer.Option(
            "--map",
            help="The map from an aligned model of another width or depth (by default the better one).",
            rich_help_panel=_MAP,
            show_default=False,
        ),
    ] = None,
    match_layers: Annotated[
        Match | None,
        typer.Option(
            help="Its layer for each of TARGET's: the one that predicts it best (default), or of the same "
            "depth.",
            rich_help_panel=_MAP,
            show_default=False,
        ),
    ] = None,
    accept_poor_map: Annotated[
        bool,
        typer.Option(
            "--accept-poor-map",
            help="Go on also where the map explains too little, or the answers teach nothing.",
            rich_help_panel=_MAP,
        ),
    ] = False,
    aligned_chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help='A Jinja chat template for the aligned model, the name of one of its own, or "own" for its '
            "default; --chat-template is for both otherwise.",
            rich_help_panel=_MAP,
            show_default=False,
        ),
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantization: Quantization = None,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
    engine: Annotated[
        Engine,
        typer.Option(
            help="What TARGET's activations are recorded with: vllm for the very deployment that will serve."
        ),
    ] = Engine.transformers,
    flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- VLLM FLAGS]",
            help="With --engine vllm: flags of vllm serve, as in the deployment.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit an aligner for TARGET: find the gate, take the vectors from the aligned model, choose where and how
    strongly to steer, and measure it on held-out prompts."""
    layers = None if steer_layers is None else read_layers(steer_layers)
    check_shares(max_false_open, confidence)
    _check_strength(strength)
    if aligned is None:
        for name, value in (
            ("--steer-layers", layers),
            ("--strength", strength),
            ("--positions", positions),
            ("--carry", carry),
            ("--map", map_kind),
            ("--match-layers", match_layers),
            ("--accept-poor-map", accept_poor_map or None),
            ("--aligned-chat-template", aligned_chat_template),
            ("--monitor", monitor or None),
        ):
            if value is not None:
                raise InputError(
                    f"{name} was given without --aligned, and a gate alone steers nothing. Name an aligned "
                    "model, or leave it out."
                )
    if monitor_tokens is not None and not monitor:
        raise InputError("--monitor-tokens was given without --monitor. Give both, or neither.")
    check_text(system or "", "--system")
    traffic = read_benign(benign or [])
    pair = _read_pair(harmful, harmless)

    from inferaligner.aligner import Aligner
    from inferaligner.artifact import check_output_folder
    from inferaligner.fit.operating_point.choice import OWN_LIMIT
    from inferaligner.fit.options import MONITOR_TOKENS
    from inferaligner.fit.samples import samples_from_lists

    if pair is not None:
        samples_from_lists(*pair, ("", ""))  # whatever is wrong with them is told now
    check_output_folder(output)
    options = ModelOptions(dtype, device, quantization, chat_template, trust_remote_code)
    options.check(target, *([] if aligned is None else [aligned]))
    its_own = aligned_chat_template == "own"
    guide = replace(options, chat_template=None if its_own else aligned_chat_template or chat_template)
    guide.check()
    check_engine(engine, flags or [], monitor)
    if not paper:
        warn_of_too_few(traffic, OWN_LIMIT if max_false_open is None else max_false_open, confidence)

    ours = options.load(target, system=system)
    theirs = None if aligned is None else guide.load(aligned, system=system)
    if chat_template is not None and aligned_chat_template is None and theirs is not None:
        _check_same_family(ours, theirs)
    with recorder_of(engine, target, flags or []) as recorder:
        aligner = Aligner.fit(
            ours.model,
            ours.reader,
            aligned=None if theirs is None else theirs.model,
            aligned_tokenizer=None if theirs is None else theirs.reader,
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
            monitor_tokens=MONITOR_TOKENS if monitor_tokens is None else monitor_tokens,
            pictures=pictures.value,
            system=system,
            carry=None if carry is None else carry.value,
            match_layers="best" if match_layers is None else match_layers.value,
            map_kind=None if map_kind is None else map_kind.value,
            accept_poor_map=accept_poor_map,
            target_name=target,
            aligned_name=aligned,
            sources=(str(harmful), str(harmless)),
            stages=RichStages(),
            recorder=recorder,
        )
    place = aligner.save_pretrained(output)

    from inferaligner.cli.artifact_view import as_json as described
    from inferaligner.cli.artifact_view import tables

    if as_json:
        print_json({"aligner": str(place), **described(aligner.artifact)})
        return
    for table in tables(aligner.artifact):
        results().print(table)
    refuse = " --on-open refuse" if aligner.artifact.gate_only else ""
    note(f"Written to {place}. Try it: inferaligner chat {target} --aligner {place}{refuse}")


def _read_pair(harmful: str | None, harmless: str | None) -> tuple[list[Prompt], list[Prompt]] | None:
    if harmful is None and harmless is None:
        return None
    if harmful is None or harmless is None:
        given, lacking = ("--harmful", "--harmless") if harmless is None else ("--harmless", "--harmful")
        raise InputError(
            f"{given} was given without {lacking}. Give both, or neither for the shipped contrast set."
        )
    return read_prompts(harmful), read_prompts(harmless)


def _check_same_family(target: LoadedModel, aligned: LoadedModel) -> None:
    from inferaligner.fit.transfer.linear_map import needs_map

    if needs_map(target.model, aligned.model):
        raise InputError(
            f"--chat-template is for {target.spec}, and {aligned.spec} is of another family. Give "
            "--aligned-chat-template FILE, or own for the template that it comes with."
        )


def _check_strength(strength: float | None) -> None:
    if strength is not None and not (strength > 0 and math.isfinite(strength)):
        raise InputError(f"--strength is {strength}; expected a positive number, such as 0.2.")
