"""`inferaligner ablate TARGET --aligner DIR -o DIR`: the effect of each choice of the method."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from inferaligner.cli.layer_ranges import read_layers
from inferaligner.cli.model_options import AlignerPlace, AsJson, ModelOptions, Target, load_aligner
from inferaligner.cli.progress import RichStages
from inferaligner.cli.run_options import RunOptions
from inferaligner.cli.terminal import note, print_json
from inferaligner.errors import InputError

if TYPE_CHECKING:
    from inferaligner.evaluation.ablation import Setting
    from inferaligner.evaluation.methods.method import Method, MethodContext
    from inferaligner.evaluation.metrics import ResultRow
    from inferaligner.evaluation.suites.sampling import Subset

_FACTORS = "0.25,0.5,1,1.5,2,3"


def ablate(
    *,
    target: Target,
    aligner: AlignerPlace,
    run: RunOptions,
    axis: Annotated[
        str, typer.Option(metavar="AXIS", help="strength, prompts, positions or gate.")
    ] = "strength",
    factors: Annotated[
        str, typer.Option(metavar="X,X,…", help="Strengths, as multiples of the fitted one.")
    ] = _FACTORS,
    source: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="The model that the vectors are of: aligned, target; both by default."
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A-B", help="A block of steered layers; repeatable. Default: the fitted layers."
        ),
    ] = None,
    aligned: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="For --axis prompts; by default the aligned model of the fit."),
    ] = None,
    suite: Annotated[
        list[str] | None, typer.Option("--suite", "-s", metavar="NAME", help="As for `evaluate`.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, metavar="N", help="Prompts per suite.")] = 40,
    max_new_tokens: Annotated[int, typer.Option(min=1, metavar="N", help="Length limit of answers.")] = 32,
    model: ModelOptions,
    as_json: AsJson = False,
) -> None:
    """Vary one choice of the method and show its effect: strength × source of the vectors × layers, the
    number of prompts, the positions, or the gate.

    Writes results.json, records.jsonl and report.html; an interrupted run is continued.
    """
    from inferaligner.evaluation.ablation import AXES, ablation_rows
    from inferaligner.evaluation.evaluate import Recipe, evaluate
    from inferaligner.evaluation.methods.method import MethodContext
    from inferaligner.evaluation.suites.catalogue import load
    from inferaligner.reporting.figures import require_matplotlib

    require_matplotlib()
    if axis not in AXES:
        raise InputError(f"--axis {axis}: expected one of {', '.join(AXES)}.")
    sources = source or ["aligned", "target"]
    if set(sources) - {"aligned", "target"}:
        raise InputError(f"--source {', '.join(sources)}: expected aligned or target.")
    multiples = _numbers(factors)
    names = suite or (["contrast-harmful", "contrast-benign"] if axis == "gate" else ["contrast-harmful"])
    subsets = load(names, data=run.data, limit=limit, seed=run.seed)
    wrong = [s.suite.name for s in subsets if s.suite.task != "reply"]
    if wrong:
        raise InputError(
            f"{', '.join(wrong)}: an ablation judges answers; give suites that are answered (task reply)."
        )
    model.check(target)
    fitted = load_aligner(aligner)
    if fitted.artifact.gate_only and axis != "gate":
        raise InputError(
            f"{aligner} is a gate alone, and --axis {axis} is about steering. Give --axis gate, or an "
            "aligner that was fitted with an aligned model."
        )
    blocks = [read_layers(text, option="--layers") for text in layers or []]
    context = MethodContext(model.load_for(fitted, target), fitted, model.load)
    if axis == "gate":
        rows = _gates(context, subsets, run.output)
        settings: list[Setting] = []
    else:
        settings, methods = _settings(
            context, axis, multiples, sources, blocks, aligned or fitted.artifact.provenance.guide
        )
        recipe = Recipe(methods, subsets, max_new_tokens, aligner)
        rows = ablation_rows(evaluate(recipe, run.output, RichStages(), overwrite=run.overwrite).records)
    report = run.output / "report.html"
    _write(rows, settings, run.output, axis, target, subsets, max_new_tokens)
    if as_json:
        print_json({"report": str(report), "results": rows})
    else:
        _show(rows)
        note(f"Report: {report}", style="bold")


def _settings(
    context: MethodContext,
    axis: str,
    factors: list[float],
    sources: list[str],
    blocks: list[tuple[int, ...]],
    aligned: str,
) -> tuple[list[Setting], list[Method]]:
    from inferaligner.evaluation import ablation

    if axis == "prompts":
        return ablation.prompt_count_methods(
            context, context.load(aligned), ablation.PROMPT_COUNTS, RichStages()
        )
    settings = (
        ablation.position_settings(context)
        if axis == "positions"
        else ablation.strength_settings(context, factors, sources, blocks)
    )
    return settings, ablation.settings_of(context, settings)


def _gates(context: MethodContext, subsets: list[Subset], output: Path) -> list[ResultRow]:
    from inferaligner.evaluation.gate_ablation import gate_figures, gate_methods

    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{output} cannot be made ({error.strerror}); give another -o.") from None
    suites = {s.suite.name: (s.suite.kind, [item.prompt for item in s.items]) for s in subsets}
    return gate_figures(gate_methods(context, RichStages()), suites, RichStages())


def _write(
    rows: list[ResultRow],
    settings: list[Setting],
    output: Path,
    axis: str,
    target: str,
    subsets: list[Subset],
    tokens: int,
) -> None:
    from inferaligner.cli.output_file import write_whole
    from inferaligner.reporting.ablation import ablation_page
    from inferaligner.storage.json_io import dump

    run = [(s.suite.name, s.described) for s in subsets]
    if axis != "gate":
        run.append(("Answers", f"greedy, at most {tokens} tokens"))
    page = ablation_page(rows, settings, axis=axis, target=target, run=run)
    write_whole(output / "results.json", (dump(rows, indent=2) + "\n").encode())
    write_whole(output / "report.html", page.encode("utf-8", "replace"))


def _show(rows: list[ResultRow]) -> None:
    from rich.table import Table

    from inferaligner.cli.terminal import results

    table = Table("suite", "setting", "metric", "value", "95 % interval", "n")
    for r in rows:
        cells = (f"{r['value']:.3g}", f"{r['low']:.3g} to {r['high']:.3g}", str(r["n"]))
        table.add_row(r["suite"], r["method"], r["metric"], *cells)
    results().print(table)


def _numbers(text: str) -> list[float]:
    try:
        numbers = sorted({float(part) for part in text.split(",")})
    except ValueError:
        numbers = []
    if not numbers or not all(0 < number < 1000 for number in numbers):
        raise InputError(f"--factors {text!r}: expected positive numbers with commas, such as {_FACTORS}.")
    return numbers
