"""`inferaligner evaluate TARGET --aligner DIR -o DIR`: methods against suites, in one report."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferaligner.cli.model_options import (
    AsJson,
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
from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import note, print_json, results

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.evaluation.methods.method import Method
    from inferaligner.evaluation.run_folder import RunFolder
    from inferaligner.evaluation.suites.sampling import Subset

_TOKENS, _QUICK_TOKENS = 64, 32


def _list(wanted: bool) -> None:
    if wanted:
        from inferaligner.cli.evaluation_tables import catalogue_tables

        for table in catalogue_tables():
            results().print(table)
        raise typer.Exit


def evaluate(
    target: Target,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write; a run there is continued.")
    ],
    aligner: Annotated[
        str | None,
        typer.Option("--aligner", "-a", metavar="DIR", help="What `fit` wrote, or a hub id of an aligner."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            "-s",
            metavar="NAME",
            help="A declared suite (--list; NAME@N for N of its prompts), or KIND=FILE with harmful, "
            "jailbreak, over-refusal, utility or benign. Repeatable. Default: the shipped ones.",
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            metavar="NAME",
            help="none, inferaligner, own-vectors, self-reminder (the default), paper, always, canned, "
            "goal-priority, cast, aligned[=MODEL], safety-sft=FOLDER, domain-chat=MODEL, prompt=FILE, or "
            "all. Repeatable.",
        ),
    ] = None,
    prompt_file: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="A defence prompt with {prompt} in it, as one more method."),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Public sets as published. Or set INFERALIGNER_DATA."),
    ] = None,
    hub: Annotated[bool, typer.Option("--hub", help="Get missing sets from the hub.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="Prompts per suite.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Fewer prompts, shorter answers: a first look.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Of the prompts that are drawn.")] = 0,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Longest answer: 64, with --quick 32.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Prompts answered at once; else by memory.")
    ] = None,
    timing: Annotated[bool, typer.Option(help="Measure inference time too.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew.")] = False,
    list_all: Annotated[
        bool,
        typer.Option("--list", help="List suites and methods, and exit.", callback=_list, is_eager=True),
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantization: Quantization = None,
    chat_template: ChatTemplate = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Compare methods on suites of test prompts: safety, over-refusal, utility and cost, with intervals.

    Writes results.json, records.jsonl (raw answers, in clear) and report.html. An interrupted run is
    continued where it was, and gives the same results.
    """
    from inferaligner.evaluation.methods import catalogue as methods
    from inferaligner.evaluation.suites import catalogue as suites
    from inferaligner.reporting.figures import require_matplotlib

    require_matplotlib()
    fitted = None if aligner is None else load_aligner(aligner)
    specs, left_out = methods.choose(method or [], None if fitted is None else fitted.artifact)
    specs = methods.check([*specs, *(f"prompt={file}" for file in prompt_file or [])])
    for name, why in left_out.items():
        note(f"Left out of all: {name} {why}")
    folder = data or (Path(os.environ["INFERALIGNER_DATA"]) if os.environ.get("INFERALIGNER_DATA") else None)
    subsets = suites.load(suite or suites.DEFAULT, data=folder, hub=hub, limit=limit, quick=quick, seed=seed)
    options = ModelOptions(dtype, device, quantization, chat_template, trust_remote_code)
    options.check(target)
    tokens = max_new_tokens or (_QUICK_TOKENS if quick else _TOKENS)
    made, run = _prepare(target, aligner, fitted, specs, subsets, options, tokens, batch_size, output)
    finished = _run(made, subsets, run, output, overwrite, timed=timing, quick=quick)
    rows = finished.write_results()

    from inferaligner.cli.evaluation_tables import show
    from inferaligner.reporting.evaluation import report

    page = finished.write_report(report(finished, rows))
    if as_json:
        print_json({"folder": str(output), "report": str(page), "results": rows})
        return
    show(finished, rows)
    note(f"Report: {page}", style="bold")


def _prepare(
    target: str,
    aligner: str | None,
    fitted: Aligner | None,
    specs: list[str],
    subsets: list[Subset],
    options: ModelOptions,
    tokens: int,
    batch_size: int | None,
    output: Path,
) -> tuple[list[Method], dict[str, Any]]:
    from inferaligner.evaluation.batches import batch_size_for
    from inferaligner.evaluation.methods.catalogue import make_methods
    from inferaligner.evaluation.methods.method import MethodContext
    from inferaligner.evaluation.records_file import stored_run
    from inferaligner.prompts.images import text_of
    from inferaligner.version import __version__

    system = None if fitted is None else fitted.artifact.provenance.system_prompt
    loaded = options.load(target, system=system)
    if fitted is not None:
        fitted.check(loaded.model, loaded.reader)
        warn_of_format(fitted.artifact, loaded)
    made = make_methods(specs, MethodContext(loaded, fitted, options.load))
    longest = max(len(text_of(item.prompt)) for subset in subsets for item in subset.items) // 3
    # What the first run chose is kept: free memory is another thing tomorrow, and batches must be the same.
    earlier = stored_run(output).get("batch size")
    size = batch_size or earlier or batch_size_for(loaded.model, longest + tokens)
    import torch
    import transformers

    run: dict[str, Any] = {
        "target": target,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.model.device.type,
        "aligner": aligner,
        "methods": {m.name: {"title": m.title, **m.settings()} for m in made},
        "suites": {
            s.suite.name: {
                "title": s.suite.title,
                "kind": s.suite.kind,
                "task": s.suite.task,
                "prompts": s.described,
                "citation": s.suite.citation,
                "licence": s.suite.licence,
                "digest": _digest(s),
            }
            for s in subsets
        },
        "max new tokens": tokens,
        "batch size": size,
        "versions": {
            "inferaligner": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    return made, run


def _digest(subset: Subset) -> str:
    import hashlib

    from inferaligner.storage.json_io import dump, plain

    return hashlib.sha256(dump([plain(item.fields()) for item in subset.items]).encode()).hexdigest()[:16]


def _run(
    made: list[Method],
    subsets: list[Subset],
    run: dict[str, Any],
    output: Path,
    overwrite: bool,
    *,
    timed: bool,
    quick: bool,
) -> RunFolder:
    from inferaligner.evaluation.inference_time import measure, timed_prompts
    from inferaligner.evaluation.records_file import RecordsFile
    from inferaligner.evaluation.run_folder import TIMING, RunFolder
    from inferaligner.evaluation.runner import Runner, RunSettings

    records = RecordsFile(output, run, overwrite=overwrite)
    if overwrite:
        (output / TIMING).unlink(missing_ok=True)
    finished = len(records.all())
    if finished:
        note(f"{output} holds {finished} records of this run; going on from there.")
    settings = RunSettings(run["max new tokens"], run["batch size"])
    Runner(records, settings, RichStages()).run(made, subsets)
    folder = RunFolder(output)
    if timed and not folder.timings():
        asked = {s.suite.name: [item.prompt for item in s.items] for s in subsets}
        prompts = timed_prompts(folder.records, asked, 2 if quick else 4)
        if any(prompts.values()):
            tokens, rounds = (16, 2) if quick else (48, 3)
            folder.write_timings(measure(made, prompts, tokens=tokens, rounds=rounds, tell=RichStages()))
        else:
            note("No prompt opened or closed a gate, so inference time was not measured.")
    return folder
