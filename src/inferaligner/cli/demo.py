"""`inferaligner demo`: the main job end to end on the embedded model.

OUT/aligner/        the fitted aligner; reused by the next run unless --refit
OUT/report.html     the report, self-contained
OUT/results.json    rows of method, suite, metric, value, low, high, n, judge
OUT/records.jsonl   all prompts with all answers, in clear; an interrupted run is continued
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferaligner.cli.model_options import AsJson, ModelOptions
from inferaligner.cli.option_groups import group_of
from inferaligner.cli.output_file import make_folder
from inferaligner.cli.progress import RichStages
from inferaligner.cli.run_options import MAX_NEW_TOKENS
from inferaligner.cli.stopwatch import Stopwatch
from inferaligner.cli.terminal import note, print_json, results, warn
from inferaligner.errors import ArtifactError, MismatchError

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.evaluation.evaluate import Recipe
    from inferaligner.evaluation.run_folder import RunFolder
    from inferaligner.models.loading import LoadedModel

_METHODS = ("inferaligner", "own-vectors")


def demo(
    *,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where to write everything.")
    ] = Path("out/demo"),
    target: Annotated[
        str, typer.Option(metavar="MODEL", help="The model to protect.")
    ] = "builtin:smollm2-135m",
    aligned: Annotated[
        str, typer.Option(metavar="MODEL", help="Its sibling that declines harmful requests.")
    ] = "builtin:smollm2-135m-aligned",
    prompts: Annotated[
        int,
        typer.Option(
            min=1, metavar="N", help="Evaluate on N harmful, N/2 wrapped harmful and N harmless prompts."
        ),
    ] = 30,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, metavar="N", help="Length limit of answers, in tokens; most end earlier.")
    ] = MAX_NEW_TOKENS,
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit anew, even if DIR holds an aligner of these models.")
    ] = False,
    model: Annotated[ModelOptions, group_of(ModelOptions, only=("dtype", "device"))],
    as_json: AsJson = False,
) -> None:
    """Do the main job end to end: fit an aligner for the embedded model, answer prompts with and without it,
    measure the answers on prompts that took no part in fitting, and write a report."""
    from inferaligner.artifact import check_output_folder
    from inferaligner.evaluation.evaluate import evaluate
    from inferaligner.reporting.evaluation import report
    from inferaligner.reporting.figures import require_matplotlib

    require_matplotlib()
    make_folder(output)
    check_output_folder(output / "aligner")
    model.check(target, aligned)
    watch = Stopwatch(RichStages())
    with watch.measure("loading the target"):
        ours = model.load(target)
    with watch.measure("loading the aligned model"):
        theirs = model.load(aligned)
    fitted = None if refit else _earlier(output / "aligner", ours, theirs)
    reused = fitted is not None
    if fitted is None:
        fitted = _fit(ours, theirs, watch)
        fitted.save_pretrained(output / "aligner")
    del theirs
    recipe = _recipe(fitted, ours, output / "aligner", prompts, max_new_tokens, model)
    # A run of other models, another aligner or other prompts is of no use to this one.
    run = evaluate(recipe, output, watch, replace_other=True)
    rows = run.write_results()
    page = run.write_report(report(run, rows))
    if as_json:
        print_json({**_summary(run, page, watch, reused=reused), "results": rows})
        return

    from inferaligner.cli.evaluation_tables import examples_table, open_rates_table, show

    for table in (examples_table(run), open_rates_table(fitted.artifact)):
        results().print(table)
        results().print()
    show(run, rows)
    note(f"{sum(watch.seconds.values()):.0f} s altogether. Report: {page}", style="bold")
    note(f"Try it yourself: inferaligner chat {target} --aligner {output / 'aligner'}")


def _earlier(folder: Path, target: LoadedModel, aligned: LoadedModel) -> Aligner | None:
    """The aligner of an earlier run, if it was fitted on these models and the shipped prompts."""
    from inferaligner.aligner import Aligner
    from inferaligner.models.weight_digest import weight_digest
    from inferaligner.prompts.contrast import load_contrast_set

    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        aligner = Aligner.from_pretrained(folder)
        aligner.check(target.model, target.tokenizer)
    except (ArtifactError, MismatchError) as error:
        warn(f"The aligner in {folder} is not used, and fitted anew: {error}")
        return None
    provenance = aligner.artifact.provenance
    if provenance.guide != aligned.spec or provenance.prompts.get("digest") != load_contrast_set().digest():
        note(f"The aligner in {folder} comes from another aligned model or other prompts; fitting anew.")
        return None
    # A model that was trained further keeps its name and its shape.
    fitted_on = [record and record.weights for record in (provenance.target, provenance.aligned)]
    if fitted_on != [weight_digest(loaded.model) for loaded in (target, aligned)]:
        note(f"The aligner in {folder} was fitted on other weights of these models; fitting anew.")
        return None
    note(f"Using the aligner in {folder}, fitted {provenance.created}. Fit it anew with --refit.")
    return aligner


def _fit(target: LoadedModel, aligned: LoadedModel, watch: Stopwatch) -> Aligner:
    from inferaligner.aligner import Aligner

    return Aligner.fit(
        target.model,
        target.tokenizer,
        aligned=aligned.model,
        aligned_tokenizer=aligned.tokenizer,
        target_name=target.spec,
        aligned_name=aligned.spec,
        progress=watch,
    )


def _recipe(
    fitted: Aligner, target: LoadedModel, folder: Path, prompts: int, tokens: int, options: ModelOptions
) -> Recipe:
    from inferaligner.evaluation.evaluate import Recipe
    from inferaligner.evaluation.methods.catalogue import make_methods
    from inferaligner.evaluation.methods.method import MethodContext
    from inferaligner.evaluation.suites.catalogue import load

    counts = {
        "contrast-harmful": prompts,
        "contrast-jailbreak": prompts // 2,
        "contrast-over-refusal": prompts - prompts // 2,
        "contrast-benign": prompts // 2,
    }
    return Recipe(
        make_methods(_METHODS, MethodContext(target, fitted, options.load)),
        load([f"{suite}@{count}" for suite, count in counts.items() if count], data=None),
        tokens,
        aligner=str(folder),
        likelihoods=False,
        withhold=True,
    )


def _summary(run: RunFolder, page: Path, watch: Stopwatch, *, reused: bool) -> dict[str, Any]:
    from inferaligner.judges.rules import RuleJudge
    from inferaligner.reporting.evaluation import titles_of
    from inferaligner.reporting.go_no_go import go_no_go

    decision = go_no_go(run.records, titles_of(run))
    return {
        "decision": decision.decision,
        "headline": decision.headline,
        "checks": [vars(check) for check in decision.checks],
        "notes": list(decision.notes),
        "judge": {"name": RuleJudge.name, "agreement": RuleJudge.agreement},
        "aligner": str(run.folder / "aligner"),
        "reused": reused,
        "report": str(page),
        "records": str(run.folder / "records.jsonl"),
        "seconds": {stage: round(seconds, 1) for stage, seconds in watch.seconds.items()},
    }
