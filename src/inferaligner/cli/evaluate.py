"""`inferaligner evaluate TARGET --aligner DIR -o DIR`: methods against suites, with one report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from inferaligner.cli.model_options import AsJson, ModelOptions, Target, load_aligner
from inferaligner.cli.option_groups import flag
from inferaligner.cli.progress import RichStages
from inferaligner.cli.run_options import RunOptions
from inferaligner.cli.terminal import note, print_json, results


def _list(wanted: bool) -> None:
    if wanted:
        from inferaligner.cli.evaluation_tables import catalogue_tables

        for table in catalogue_tables():
            results().print(table)
        raise typer.Exit


@dataclass(frozen=True)
class EvaluationOptions(RunOptions):
    """Methods, suites and limits of an evaluation."""

    suite: list[str] | None = flag(
        None,
        "--suite",
        "-s",
        metavar="NAME",
        help="A suite of --list (NAME@N for N of its prompts), or KIND=FILE with the kind harmful, "
        "jailbreak, over-refusal, utility or benign. Repeatable. Default: a shipped suite of every kind.",
    )
    method: list[str] | None = flag(
        None,
        "--method",
        "-m",
        metavar="NAME",
        help="none, inferaligner, own-vectors, self-reminder (these by default), paper, always, canned, "
        "goal-priority, cast, aligned[=MODEL], safety-sft=FOLDER, domain-chat=MODEL, prompt=FILE, or "
        "all (--list explains them). Repeatable.",
    )
    prompt_file: list[Path] | None = flag(
        None,
        metavar="FILE",
        help="Text with {prompt} in it: adds a method that puts every prompt there. Repeatable.",
    )
    hub: bool = flag(False, "--hub", help="Download missing sets from the hub.")
    limit: int | None = flag(None, min=1, metavar="N", help="Prompts per suite.")
    quick: bool = flag(False, "--quick", help="Fewer prompts, shorter answers to benign ones: a first look.")
    batch_size: int | None = flag(
        None, min=1, metavar="N", help="Prompts answered at once. Default: by memory."
    )
    timing: bool = flag(True, help="Measure inference time too.")


def evaluate(
    *,
    target: Target,
    run: EvaluationOptions,
    aligner: Annotated[
        str | None,
        typer.Option(
            "--aligner", "-a", metavar="DIR", help="Folder that `fit` wrote, or hub id of an aligner."
        ),
    ] = None,
    list_all: Annotated[
        bool,
        typer.Option("--list", help="List suites and methods, and exit.", callback=_list, is_eager=True),
    ] = False,
    model: ModelOptions,
    as_json: AsJson = False,
) -> None:
    """Compare methods on suites of test prompts: safety, over-refusal, utility and cost, with intervals.

    Writes results.json, records.jsonl (raw answers, in clear) and report.html. The same command continues an
    interrupted run, with the same results.
    """
    from inferaligner.evaluation.evaluate import Recipe
    from inferaligner.evaluation.evaluate import evaluate as run_recipe
    from inferaligner.evaluation.inference_time import QUICK, TimingSettings
    from inferaligner.evaluation.methods import catalogue as methods
    from inferaligner.evaluation.methods.method import MethodContext
    from inferaligner.evaluation.suites import catalogue as suites
    from inferaligner.reporting.evaluation import report
    from inferaligner.reporting.figures import require_matplotlib

    require_matplotlib()
    fitted = None if aligner is None else load_aligner(aligner)
    specs, left_out = methods.choose(run.method or [], None if fitted is None else fitted.artifact)
    specs = methods.check([*specs, *(f"prompt={file}" for file in run.prompt_file or [])])
    for name, why in left_out.items():
        note(f"Left out of all: {name} {why}")
    subsets = suites.load(
        run.suite or suites.DEFAULT,
        data=run.data,
        hub=run.hub,
        limit=run.limit,
        quick=run.quick,
        seed=run.seed,
    )
    loaded = model.load_for(fitted, target)
    recipe = Recipe(
        methods.make_methods(specs, MethodContext(loaded, fitted, model.load)),
        subsets,
        run.max_new_tokens,
        aligner,
        run.batch_size,
        shorter=suites.QUICK_TOKENS if run.quick else {},
        timing=(QUICK if run.quick else TimingSettings()) if run.timing else None,
    )
    done = run_recipe(recipe, run.output, RichStages(), overwrite=run.overwrite)
    rows = done.write_results()
    page = done.write_report(report(done, rows))
    if as_json:
        print_json({"folder": str(run.output), "report": str(page), "results": rows})
        return

    from inferaligner.cli.evaluation_tables import show

    show(done, rows)
    note(f"Report: {page}", style="bold")
