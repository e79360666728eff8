"""`inferaligner judge DIR`: other judges on stored answers, and how far a judge agrees with people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inferaligner.cli.model_options import AsJson
from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import note, print_json, results
from inferaligner.errors import InputError

if TYPE_CHECKING:
    from inferaligner.judges.pair_judge import PairJudge

_MODEL = "A language model as the judge"
_CLASSIFIER = "A local classifier as the judge"
_LABELS = "Measuring the judge"


def judge(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="What `evaluate` wrote; its results and report are renewed."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="NAME", help="The judge's model.", rich_help_panel=_MODEL)
    ] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Any OpenAI-compatible endpoint.", rich_help_panel=_MODEL),
    ] = None,
    api_key_variable: Annotated[
        str,
        typer.Option(metavar="NAME", help="The environment variable of the key.", rich_help_panel=_MODEL),
    ] = "OPENAI_API_KEY",
    rubric: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="attack-success, graded-harm or over-refusal.", rich_help_panel=_MODEL
        ),
    ] = "attack-success",
    concurrency: Annotated[int, typer.Option(min=1, help="Questions at a time.", rich_help_panel=_MODEL)] = 8,
    per_minute: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Most questions a minute.", rich_help_panel=_MODEL)
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Where replies are kept.", rich_help_panel=_MODEL),
    ] = None,
    classifier: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="A folder or a hub id.", rich_help_panel=_CLASSIFIER),
    ] = None,
    template: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Of a causal one: {prompt} and {answer}.", rich_help_panel=_CLASSIFIER
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help="Its labels, the positive one first.", rich_help_panel=_CLASSIFIER),
    ] = None,
    labelled: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Answers with people's labels.", rich_help_panel=_LABELS),
    ] = None,
    answer_column: Annotated[str, typer.Option(rich_help_panel=_LABELS)] = "answer",
    label_column: Annotated[str, typer.Option(rich_help_panel=_LABELS)] = "label",
    positive: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL", help="Labels that should be found.", rich_help_panel=_LABELS),
    ] = None,
    harmbench: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write completions in HarmBench's form, a file per method."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Judge stored answers again, without generating; or measure a judge against labelled answers.

    Without --model and --classifier the judge is the rules. Verdicts are written as they come; the same
    command again goes on where it was.
    """
    from inferaligner.evaluation.judging import measure

    if folder is None and labelled is None:
        raise InputError("Give the folder of an evaluation, or --labelled FILE, or both.")
    if harmbench is not None and folder is None:
        raise InputError("--harmbench needs the folder of an evaluation.")
    if labelled is not None and not positive:
        raise InputError("--labelled needs --positive LABEL: which of the file's labels should be found.")
    if labelled is not None and not labelled.is_file():
        raise InputError(f"{labelled} does not exist.")
    chosen, kinds = _judge(
        model, base_url, api_key_variable, rubric, concurrency, per_minute, cache, classifier, template, label
    )
    summary: dict[str, Any] = {"judge": chosen.name}
    told = ""
    if labelled is not None:
        found, told = measure(
            labelled,
            chosen,
            RichStages(),
            answer=answer_column,
            label=label_column,
            positive=positive or (),
        )
        summary["agreement"] = {
            "told": told,
            **{name: vars(getattr(found, name)) for name in ("accuracy", "precision", "recall")},
        }
        if not as_json:
            results().print(f"{chosen.name}. {told}", markup=False, highlight=False)
    if folder is not None:
        summary |= _again(folder, chosen, kinds, told, harmbench, quiet=as_json)
    if as_json:
        print_json(summary)


def _again(
    folder: Path, chosen: PairJudge, kinds: tuple[str, ...], told: str, harmbench: Path | None, *, quiet: bool
) -> dict[str, Any]:
    from inferaligner.evaluation import harmbench_export
    from inferaligner.evaluation.judging import judge_by_rules, judge_records
    from inferaligner.evaluation.run_folder import RunFolder
    from inferaligner.judges.rules import RuleJudge
    from inferaligner.reporting.evaluation import report

    run = RunFolder(folder)
    judged = [r for r in run.records if "response" in r and (not kinds or r["kind"] in kinds)]
    if not judged:
        raise InputError(f"{folder} has no answers of the kinds {', '.join(kinds)} to judge.")
    if chosen.name == RuleJudge.name:
        asked = judge_by_rules(folder, judged)
    else:
        asked = judge_records(folder, judged, chosen, RichStages(), told=told)
    if harmbench is not None:
        harmbench_export.write(run.records, harmbench)
        note(f"Completions in {harmbench}.")
    renewed = RunFolder(folder)
    rows = renewed.write_results()
    page = renewed.write_report(report(renewed, rows))
    if not quiet:
        note(f"{len(judged)} answers judged, {asked} asked about. Report: {page}", style="bold")
    return {"asked": asked, "results": [row for row in rows if row["judge"] == chosen.name]}


def _judge(
    model: str | None,
    base_url: str | None,
    variable: str,
    rubric: str,
    concurrency: int,
    per_minute: int | None,
    cache: Path | None,
    classifier: str | None,
    template: Path | None,
    labels: list[str] | None,
) -> tuple[PairJudge, tuple[str, ...]]:
    """The judge, and the kinds of suites that it is for; none means all."""
    if model is not None and classifier is not None:
        raise InputError("Give --model or --classifier, not both.")
    if model is not None:
        from inferaligner.judges.language_model import Endpoint, LanguageModelJudge
        from inferaligner.judges.reply_cache import ReplyCache
        from inferaligner.judges.rubric import RUBRICS

        if rubric not in RUBRICS:
            raise InputError(f"There is no rubric {rubric!r}; expected one of {', '.join(RUBRICS)}.")
        place = cache or Path.home() / ".cache" / "inferaligner" / "judge-replies.sqlite"
        key = os.environ.get(variable) or None
        endpoint = Endpoint(model, base_url, key, concurrency, per_minute)
        asked = RUBRICS[rubric]
        return LanguageModelJudge(endpoint, asked, ReplyCache(place)), asked.kinds
    if classifier is not None:
        from inferaligner.judges.classifier import ClassifierJudge

        text = None
        if template is not None:
            try:
                text = template.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise InputError(f"The template {template} cannot be read ({error}).") from None
        return ClassifierJudge(classifier, template=text, labels=labels or ()), ("harmful", "jailbreak")
    from inferaligner.judges.pair_judge import RulesOnPairs

    return RulesOnPairs(), ()
