"""`inferaligner demo`: the main job end to end on the embedded model.

OUT/aligner/        the fitted aligner; reused by the next run unless --refit
OUT/report.html     the report, self-contained
OUT/results.json    rows of method, suite, metric, value, low, high, n, judge
OUT/records.jsonl   all prompts with all answers, in clear
"""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferaligner.cli.model_options import AsJson, Device, Dtype, ModelOptions
from inferaligner.cli.progress import RichStages
from inferaligner.cli.stopwatch import Stopwatch
from inferaligner.cli.terminal import note, print_json, results, warn
from inferaligner.errors import ArtifactError, InputError, MismatchError

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.models.loading import LoadedModel
    from inferaligner.reporting.side_by_side import SideBySide

_MAX_NEW_TOKENS = 48


def demo(
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
    refit: Annotated[
        bool, typer.Option("--refit", help="Fit anew, also where DIR holds an aligner that would do.")
    ] = False,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Do the main job end to end: fit an aligner for the embedded model, answer prompts with and without it,
    measure what it does on prompts it was not fitted on, and write a report."""
    from inferaligner.reporting.figures import require_matplotlib

    require_matplotlib()
    options = ModelOptions(dtype, device)
    _make(output)
    options.check(target, aligned)
    watch = Stopwatch(RichStages())
    with watch.measure("loading the target"):
        ours = options.load(target)
    with watch.measure("loading the aligned model"):
        theirs = options.load(aligned)
    fitted = None if refit else _earlier(output / "aligner", ours, theirs)
    reused = fitted is not None
    if fitted is None:
        fitted = _fit(ours, theirs, watch)
        fitted.save_pretrained(output / "aligner")
    del theirs
    run = _evaluate(fitted, ours, prompts, watch)
    rows = _write(run, output)
    if as_json:
        print_json({**_summary(run, output, reused=reused), "results": rows})
        return

    from inferaligner.cli.demo_tables import tables
    from inferaligner.reporting.verdict import verdict

    for table in tables(run):
        results().print(table)
        results().print()
    told = verdict(run.rows)
    results().print(told.headline, style="bold green" if told.protects else "bold yellow", markup=False)
    for point in (told.cost, *told.points):
        results().print(f"• {point}", markup=False, highlight=False)
    results().print(f"Judge: {run.judge}. {run.agreement}", style="dim", markup=False, highlight=False)
    note(f"{sum(watch.seconds.values()):.0f} s altogether. Report: {output / 'report.html'}", style="bold")
    note(f"Try it yourself: inferaligner chat {target} --aligner {output / 'aligner'}")


def _make(output: Path) -> None:
    from inferaligner.artifact import check_output_folder

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{output} cannot be made ({error.strerror}); give another folder with -o."
        ) from None
    check_output_folder(output / "aligner")


def _earlier(folder: Path, target: LoadedModel, aligned: LoadedModel) -> Aligner | None:
    """The aligner of an earlier run, if it is one that this run would fit again."""
    from inferaligner.aligner import Aligner
    from inferaligner.models.weight_digest import weight_digest
    from inferaligner.prompts.contrast import load_contrast_set

    if not folder.exists() or not any(folder.iterdir()):
        return None
    try:
        found = Aligner.from_pretrained(folder)
        found.check(target.model, target.tokenizer)
    except (ArtifactError, MismatchError) as error:
        warn(f"The aligner in {folder} is not used, and fitted anew: {error}")
        return None
    provenance = found.artifact.provenance
    if provenance.guide != aligned.spec or provenance.prompts.get("digest") != load_contrast_set().digest():
        note(f"The aligner in {folder} comes from another aligned model or other prompts; fitting anew.")
        return None
    # A model that was trained on keeps its name, and its shape.
    fitted = [record and record.weights for record in (provenance.target, provenance.aligned)]
    if fitted != [weight_digest(one.model) for one in (target, aligned)]:
        note(f"The aligner in {folder} was fitted on other weights of these models; fitting anew.")
        return None
    note(f"Using the aligner in {folder}, fitted {provenance.created}. Fit it anew with --refit.")
    return found


def _fit(target: LoadedModel, aligned: LoadedModel, watch: Stopwatch) -> Aligner:
    from inferaligner.aligner import Aligner

    return Aligner.fit(
        target.model,
        target.tokenizer,
        aligned=aligned.model,
        aligned_tokenizer=aligned.tokenizer,
        target_name=target.spec,
        aligned_name=aligned.spec,
        stages=watch,
    )


def _evaluate(fitted: Aligner, target: LoadedModel, number: int, watch: Stopwatch) -> SideBySide:
    from inferaligner.evaluation.side_by_side import choose, compare
    from inferaligner.fit.samples import samples_from_contrast
    from inferaligner.judges.rules import RuleJudge, judge
    from inferaligner.prompts.contrast import load_contrast_set
    from inferaligner.reporting.side_by_side import SideBySide

    tested = samples_from_contrast(load_contrast_set()).test
    rows = compare(
        fitted,
        target.model,
        target.tokenizer,
        choose(tested, number),
        judge=judge,
        max_new_tokens=_MAX_NEW_TOKENS,
        stages=watch,
    )
    return SideBySide(
        artifact=fitted.artifact,
        rows=rows,
        judge=RuleJudge.name,
        agreement=RuleJudge.agreement,
        max_new_tokens=_MAX_NEW_TOKENS,
        created=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        seconds=watch.seconds,
    )


def _write(run: SideBySide, output: Path) -> list[dict[str, object]]:
    from inferaligner.cli.output_file import write_lines, write_whole
    from inferaligner.evaluation.side_by_side import gate_rows, records, result_rows
    from inferaligner.reporting.side_by_side import report
    from inferaligner.storage.json_io import dump

    rows = [*result_rows(run.rows, judge=run.judge), *gate_rows(run.held_out)]
    write_lines(output / "records.jsonl", records(run.rows))
    write_whole(output / "results.json", (dump(rows, indent=2) + "\n").encode())
    write_whole(output / "report.html", report(run).encode())
    return rows


def _summary(run: SideBySide, output: Path, *, reused: bool) -> dict[str, object]:
    from inferaligner.reporting.verdict import verdict

    told = verdict(run.rows)
    return {
        "verdict": told.headline,
        "cost": told.cost,
        "points": list(told.points),
        "protects": told.protects,
        "judge": {"name": run.judge, "agreement": run.agreement},
        "aligner": str(output / "aligner"),
        "reused": reused,
        "report": str(output / "report.html"),
        "records": str(output / "records.jsonl"),
        "seconds": {stage: round(seconds, 1) for stage, seconds in run.seconds.items()},
    }
