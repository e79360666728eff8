"""`inferaligner doctor [TARGET --aligner DIR | TARGET --aligned MODEL]`: checks the environment, whether an
aligner fits a model, and whether one model can guide another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from inferaligner.cli.environment import Finding, examine
from inferaligner.cli.model_options import AsJson, ModelOptions, load_aligner
from inferaligner.cli.option_groups import flag
from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import print_json, results
from inferaligner.errors import InputError

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.fit.diagnosis import Diagnosis
    from inferaligner.fit.operating_point.precision_check import FormatShift
    from inferaligner.models.loading import LoadedModel

_STYLES = {"ok": "green", "missing": "yellow", "doubtful": "yellow", "differs": "bold red"}


@dataclass(frozen=True)
class DoctorOptions:
    """What is checked beside the environment."""

    aligner: str | None = flag(None, "--aligner", "-a", metavar="DIR", help="An aligner to check on TARGET.")
    aligned: str | None = flag(
        None,
        metavar="MODEL",
        help="A model to check before a fit: whether it can guide TARGET, and how well.",
    )
    rescore: bool = flag(
        False,
        "--rescore",
        help="With --aligner: score its held-out prompts again, to check whether the bias holds in the "
        "precision in which TARGET is loaded.",
    )
    prompts: int = flag(
        100, min=4, metavar="N", help="Largest number of prompts of each kind for --aligned and --rescore."
    )
    system: str | None = flag(
        None, metavar="TEXT", help="With --aligned: the system prompt with which TARGET is served."
    )
    aligned_chat_template: str | None = flag(
        None,
        metavar="FILE|NAME",
        help="A Jinja chat template for the aligned model, the name of one of its own templates, or "
        '"own" for its default. Without it, --chat-template is for both models.',
    )


def doctor(
    *,
    target: Annotated[
        str | None,
        typer.Argument(metavar="[TARGET]", help="The model to protect; give --aligner or --aligned with it."),
    ] = None,
    options: DoctorOptions,
    model: ModelOptions,
    as_json: AsJson = False,
) -> None:
    """Check the environment; with TARGET and --aligner, also whether the aligner fits TARGET and its gate
    acts; with TARGET and --aligned, whether that model can guide TARGET.

    The exit code is 0 if every check passes, and 2 if a check fails or the expected quality is poor.
    """
    aligner, aligned, system = options.aligner, options.aligned, options.system
    _check_arguments(target, options)
    report = {"environment": examine()}
    shifts: list[FormatShift] = []
    diagnosis: Diagnosis | None = None
    if target is not None and aligner is not None:
        fitted = load_aligner(aligner)
        model.check(target)
        loaded = model.load(target, system=fitted.artifact.provenance.system_prompt)
        report.update(_check_pair(fitted, loaded))
        if options.rescore and not _differs(report):
            shifts = _rescore(fitted, loaded, options.prompts)
    elif target is not None and aligned is not None:
        guide = model.with_template(options.aligned_chat_template)
        model.check(target)
        guide.check(aligned)
        ours, theirs = model.load(target, system=system), guide.load(aligned, system=system)
        diagnosis = _diagnose(ours, theirs, options.prompts, system)
    fine = not _differs(report) and all(shift.holds for shift in shifts)
    fine = fine and (diagnosis is None or diagnosis.quality != "poor")
    if as_json:
        output: dict[str, Any] = {name: [asdict(f) for f in findings] for name, findings in report.items()}
        if shifts:
            output["rescored"] = [{**asdict(shift), "holds": shift.holds} for shift in shifts]
        if diagnosis is not None:
            output["diagnosis"] = asdict(diagnosis)
        print_json({"ok": fine, **output})
    else:
        for name, findings in report.items():
            results().print(_table(name, findings))
        _show(shifts, diagnosis)
    if not fine:
        raise typer.Exit(2)


def _check_arguments(target: str | None, options: DoctorOptions) -> None:
    aligner, aligned = options.aligner, options.aligned
    if aligner is not None and aligned is not None:
        raise InputError(
            "--aligner checks a fitted aligner, --aligned a model before a fit: give one of them."
        )
    if (target is None) != (aligner is None and aligned is None):
        raise InputError(
            "TARGET needs --aligner or --aligned, and each of them needs TARGET: give both, or neither to "
            "check the environment alone."
        )
    if options.rescore and aligner is None:
        raise InputError(
            "--rescore scores the prompts of an aligner again: give the aligner with --aligner DIR."
        )


def _differs(report: dict[str, list[Finding]]) -> bool:
    return any(finding.state == "differs" for findings in report.values() for finding in findings)


def _check_pair(fitted: Aligner, loaded: LoadedModel) -> dict[str, list[Finding]]:
    from inferaligner.cli.compatibility import compare, self_test

    findings = compare(fitted, loaded)
    if any(finding.state == "differs" for finding in findings):
        return {"compatibility": findings}
    return {"compatibility": findings, "gate self-test": self_test(fitted, loaded)}


def _rescore(fitted: Aligner, loaded: LoadedModel, most: int) -> list[FormatShift]:
    from inferaligner.fit.operating_point.precision_check import format_shifts
    from inferaligner.fit.samples import samples_from_contrast
    from inferaligner.prompts.contrast import load_contrast_set

    def score(texts: Sequence[str]) -> list[float]:
        with RichStages().stage("scoring again", len(texts)) as advance:
            decisions = fitted.score(loaded.model, loaded.reader, texts, advance=advance)
        return [decision.score for decision in decisions]

    samples = samples_from_contrast(load_contrast_set())
    return format_shifts(fitted.artifact, samples, score, most=most)


def _diagnose(target: LoadedModel, aligned: LoadedModel, per_sort: int, system: str | None) -> Diagnosis:
    from inferaligner.fit.context import FitContext, FitModel
    from inferaligner.fit.diagnosis import diagnose
    from inferaligner.fit.options import FitOptions
    from inferaligner.fit.samples import samples_from_contrast
    from inferaligner.judges.rules import judge
    from inferaligner.prompts.contrast import load_contrast_set

    context = FitContext(
        FitModel(target.model, target.reader, target.spec),
        FitModel(aligned.model, aligned.reader, aligned.spec),
        samples_from_contrast(load_contrast_set()),
        lambda answer: judge(answer).outcome,
        FitOptions(system=system),
        progress=RichStages(),
    )
    return diagnose(context, per_sort=per_sort)


def _show(shifts: Sequence[FormatShift], diagnosis: Diagnosis | None) -> None:
    from inferaligner.cli import diagnosis_view

    if shifts:
        results().print(diagnosis_view.shift_table(shifts))
    if diagnosis is not None:
        for table in diagnosis_view.tables(diagnosis):
            results().print(table)
        results().print(diagnosis_view.expectation(diagnosis))


def _table(name: str, findings: Sequence[Finding]) -> Table:
    from inferaligner.cli.tables import titled

    table = titled(name, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    table.add_column(overflow="fold")
    for finding in findings:
        text = finding.found + (f" ({finding.advice})" if finding.advice else "")
        table.add_row(finding.name, Text(finding.state, style=_STYLES[finding.state]), Text(text))
    return table
