"""`inferaligner fit TARGET --aligned MODEL -o DIR`: fit an aligner, write the artifact."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from inferaligner.cli.fit_flags import MAP, PROMPTS, Choices
from inferaligner.cli.model_options import AsJson, ModelOptions, Target
from inferaligner.cli.option_groups import flag
from inferaligner.cli.progress import RichStages
from inferaligner.cli.recording_engine import Engine, check_engine, recorder_of
from inferaligner.cli.terminal import check_text, note, print_json, results
from inferaligner.cli.traffic_options import read_benign, warn_of_too_few
from inferaligner.errors import InputError
from inferaligner.fit.options import FitOptions, check_given
from inferaligner.prompts.images import Prompt
from inferaligner.prompts.prompt_files import read_prompts

if TYPE_CHECKING:
    from inferaligner.models.loading import LoadedModel


@dataclass(frozen=True)
class PromptOptions:
    """Prompts instead of the shipped ones."""

    panel: ClassVar = PROMPTS

    harmful: str | None = flag(
        None,
        metavar="SPEC",
        help="Harmful prompts instead of the shipped contrast set: .txt, .jsonl, .json, .csv (FILE:column) "
        "or hf://dataset#column. Goes with --harmless.",
    )
    harmless: str | None = flag(None, metavar="SPEC", help="Harmless prompts, best the harmful ones' twins.")
    benign: list[str] | None = flag(
        None,
        metavar="[NAME=]SPEC",
        help="Harmless prompts of your own traffic; at most --max-false-open of each kind opens the gate. "
        "May be repeated.",
    )


def fit(
    *,
    target: Target,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="DIR", help="Where to write the aligner."),
    ],
    aligned: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="A model that declines harmful requests: best a sibling of TARGET (the same base model), "
            "else any other (see --carry). Without one the aligner is a gate alone, for --on-open refuse.",
        ),
    ] = None,
    own: PromptOptions,
    choices: Choices,
    aligned_chat_template: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|NAME",
            help='A Jinja chat template for the aligned model, the name of one of its own, or "own" for its '
            "default; otherwise --chat-template applies to both models.",
            rich_help_panel=MAP,
        ),
    ] = None,
    model: ModelOptions,
    engine: Annotated[
        Engine,
        typer.Option(
            help="The engine that records TARGET's activations: vllm if vLLM will serve it, so that scores "
            "are rounded alike."
        ),
    ] = "transformers",
    flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[-- VLLM FLAGS]", help="With --engine vllm: flags of vllm serve, as in the deployment."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit an aligner for TARGET: choose the gate, take the vectors from the aligned model, choose where and
    how strongly to steer, and measure it on held-out prompts."""
    chosen = FitOptions(**choices)
    given = [*choices, *([] if aligned_chat_template is None else ["aligned_chat_template"])]
    check_given(given, aligned=aligned is not None)
    check_text(chosen.system or "", "--system")
    traffic = read_benign(own.benign or [])
    pair = _read_pair(own.harmful, own.harmless)

    from inferaligner.aligner import Aligner
    from inferaligner.artifact import check_output_folder
    from inferaligner.fit.samples import samples_from_lists

    if pair is not None:
        samples_from_lists(*pair, ("", ""))  # raises for unusable prompts, before a model is loaded
    check_output_folder(output)
    model.check(target, *([] if aligned is None else [aligned]))
    guide = model.with_template(aligned_chat_template)
    guide.check()
    check_engine(engine, flags or [], chosen.monitor)
    if not chosen.paper:
        warn_of_too_few(traffic, chosen.limits(bool(traffic))[0], chosen.confidence)

    target_model = model.load(target, system=chosen.system)
    aligned_model = None if aligned is None else guide.load(aligned, system=chosen.system)
    if model.chat_template is not None and aligned_chat_template is None and aligned_model is not None:
        _check_same_family(target_model, aligned_model)
    with recorder_of(engine, target, flags or []) as recorder:
        aligner = Aligner.fit(
            target_model.model,
            target_model.reader,
            aligned=None if aligned_model is None else aligned_model.model,
            aligned_tokenizer=None if aligned_model is None else aligned_model.reader,
            harmful=None if pair is None else pair[0],
            harmless=None if pair is None else pair[1],
            benign=traffic or None,
            target_name=target,
            aligned_name=aligned,
            sources=(str(own.harmful), str(own.harmless)),
            progress=RichStages(),
            recorder=recorder,
            **choices,
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
