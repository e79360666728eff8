"""`inferaligner judge DIR`: other judges on stored answers, and the agreement of a judge with people."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from inferaligner.cli.model_options import AsJson
from inferaligner.cli.option_groups import flag
from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import note, print_json, results
from inferaligner.errors import InputError
from inferaligner.judges import JudgeOptions

if TYPE_CHECKING:
    from inferaligner.judges import Judge

_DEFAULTS = JudgeOptions()


def _list(wanted: bool) -> None:
    if wanted:
        from rich.table import Table

        from inferaligner.judges.catalogue import declared

        table = Table("judge", "what it is", "needs", title="Judges")
        for name, module in sorted(declared().items()):
            summary = (module.__doc__ or "").strip().splitlines()[0]
            table.add_row(name, summary, getattr(module, "OPTION", ""))
        results().print(table)
        raise typer.Exit


@dataclass(frozen=True)
class LanguageModelOptions:
    """A language model as the judge."""

    panel: ClassVar = "A language model as the judge"

    model: str | None = flag(None, metavar="NAME", help="Short for --judge language-model=NAME.")
    base_url: str | None = flag(None, metavar="URL", help="Any OpenAI-compatible endpoint.")
    api_key_variable: str = flag(
        "OPENAI_API_KEY", metavar="NAME", help="The environment variable with the key."
    )
    rubric: str = flag(_DEFAULTS.rubric, metavar="NAME", help="attack-success, graded-harm or over-refusal.")
    concurrency: int = flag(_DEFAULTS.concurrency, min=1, help="Questions in flight at a time.")
    per_minute: int | None = flag(None, min=1, metavar="N", help="At most N questions a minute.")
    cache: Path | None = flag(
        None, metavar="FILE", help="The file that keeps replies; by default one in ~/.cache/inferaligner."
    )


@dataclass(frozen=True)
class ClassifierOptions:
    """A local classifier as the judge."""

    panel: ClassVar = "A local classifier as the judge"

    classifier: str | None = flag(
        None, metavar="MODEL", help="A folder or a hub id; short for --judge classifier=MODEL."
    )
    template: Path | None = flag(
        None, metavar="FILE", help="The text for a causal classifier, with {prompt} and {answer} in it."
    )
    label: list[str] | None = flag(
        None, metavar="WORD", help="A label of a causal classifier, the positive one first. Repeatable."
    )


@dataclass(frozen=True)
class LabelOptions:
    """Answers with human labels, on which the judge is measured."""

    panel: ClassVar = "Measuring the judge"

    labelled: Path | None = flag(None, metavar="FILE", help="Answers with human labels.")
    answer_column: str = flag("answer", help="The column of the answers.")
    label_column: str = flag("label", help="The column of the labels.")
    positive: list[str] | None = flag(
        None, metavar="LABEL", help="A label in FILE that the judge should detect. Repeatable."
    )


def judge(
    *,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]", help="The folder that `evaluate` wrote; its results and report are rewritten."
        ),
    ] = None,
    judge_name: Annotated[
        str | None,
        typer.Option("--judge", metavar="NAME", help="A judge by its name, as NAME or NAME=OPTION (--list)."),
    ] = None,
    language_model: LanguageModelOptions,
    local: ClassifierOptions,
    labels: LabelOptions,
    harmbench: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write completions in HarmBench's form, a file per method."),
    ] = None,
    list_all: Annotated[
        bool, typer.Option("--list", help="List the judges, and exit.", callback=_list, is_eager=True)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Judge stored answers again, without generating; or measure a judge against labelled answers.

    The default judge is the rules. The same command continues an interrupted run.
    """
    from inferaligner.evaluation.judging import measure

    if folder is None and labels.labelled is None:
        raise InputError("Give the folder of an evaluation, or --labelled FILE, or both.")
    if harmbench is not None and folder is None:
        raise InputError("--harmbench needs the folder of an evaluation.")
    if labels.labelled is not None and not labels.positive:
        raise InputError(
            "--labelled needs --positive LABEL: a label in the file that the judge should detect."
        )
    if labels.labelled is not None and not labels.labelled.is_file():
        raise InputError(f"{labels.labelled} does not exist.")
    options = JudgeOptions(
        language_model.base_url,
        os.environ.get(language_model.api_key_variable) or None,
        language_model.rubric,
        language_model.concurrency,
        language_model.per_minute,
        language_model.cache,
        None if local.template is None else _text(local.template),
        tuple(local.label or ()),
    )
    chosen = _judge(judge_name, language_model.model, local.classifier, options)
    summary: dict[str, Any] = {"judge": chosen.name}
    agreement = ""
    if labels.labelled is not None:
        measured, agreement = measure(
            labels.labelled,
            chosen,
            RichStages(),
            answer=labels.answer_column,
            label=labels.label_column,
            positive=labels.positive or (),
        )
        summary["agreement"] = {
            "told": agreement,
            **{name: vars(getattr(measured, name)) for name in ("accuracy", "precision", "recall")},
        }
        if not as_json:
            results().print(f"{chosen.name}. {agreement}", markup=False, highlight=False)
    if folder is not None:
        summary |= _judge_again(folder, chosen, agreement, harmbench, quiet=as_json)
    if as_json:
        print_json(summary)


def _judge_again(
    folder: Path, chosen: Judge, agreement: str, harmbench: Path | None, *, quiet: bool
) -> dict[str, Any]:
    from inferaligner.evaluation import harmbench_export
    from inferaligner.evaluation.judging import judge_by_rules, judge_records
    from inferaligner.evaluation.run_folder import RunFolder
    from inferaligner.judges.rules import RuleJudge
    from inferaligner.reporting.evaluation import report

    run = RunFolder(folder)
    answers = [r for r in run.records if "response" in r and (not chosen.kinds or r["kind"] in chosen.kinds)]
    if not answers:
        raise InputError(f"{folder} has no answers of the kinds {', '.join(chosen.kinds)} to judge.")
    if chosen.name == RuleJudge.name:
        judged = judge_by_rules(folder, answers)
    else:
        judged = judge_records(folder, answers, chosen, RichStages(), measured=agreement)
    if harmbench is not None:
        harmbench_export.write(run.records, harmbench)
        note(f"Completions in {harmbench}.")
    renewed = RunFolder(folder)
    rows = renewed.write_results()
    page = renewed.write_report(report(renewed, rows))
    if not quiet:
        note(f"{len(answers)} answers, {judged} judged in this run. Report: {page}", style="bold")
    return {"asked": judged, "results": [row for row in rows if row["judge"] == chosen.name]}


def _judge(name: str | None, model: str | None, classifier: str | None, options: JudgeOptions) -> Judge:
    from inferaligner.judges.catalogue import make_judge
    from inferaligner.judges.rules import RuleJudge

    specs = {
        "--judge": name,
        "--model": None if model is None else f"language-model={model}",
        "--classifier": None if classifier is None else f"classifier={classifier}",
    }
    given = [flag for flag, spec in specs.items() if spec is not None]
    if len(given) > 1:
        raise InputError(f"Give {' or '.join(given)}, not both.")
    return make_judge(next((spec for spec in specs.values() if spec is not None), RuleJudge.name), options)


def _text(template: Path) -> str:
    try:
        return template.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"The template {template} cannot be read ({error}).") from None
