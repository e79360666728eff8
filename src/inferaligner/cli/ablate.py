"""`inferaligner ablate TARGET --aligner DIR -o DIR`: the effect of each choice of the method."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from inferaligner.cli.layer_ranges import read_layers
from inferaligner.cli.model_options import AlignerPlace, AsJson, ModelOptions, Target, load_aligner
from inferaligner.cli.option_groups import flag
from inferaligner.cli.output_file import make_folder, write_whole
from inferaligner.cli.progress import RichStages
from inferaligner.cli.run_options import RunOptions
from inferaligner.cli.terminal import note, print_json
from inferaligner.errors import InputError

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner
    from inferaligner.evaluation.ablation import Setting
    from inferaligner.evaluation.methods.method import Method, MethodContext
    from inferaligner.evaluation.metrics import ResultRow
    from inferaligner.evaluation.suites.sampling import Subset

_FACTORS = "0.25,0.5,1,1.5,2,3"


@dataclass(frozen=True)
class AblationOptions(RunOptions):
    """The choice that is varied, and the prompts."""

    axis: str = flag("strength", metavar="AXIS", help="strength, prompts, positions or gate.")
    factors: str = flag(_FACTORS, metavar="X,X,…", help="Strengths, as multiples of the fitted one.")
    source: list[str] | None = flag(
        None, metavar="NAME", help="The model that the vectors are of: aligned, target; both by default."
    )
    layers: list[str] | None = flag(
        None, metavar="A-B", help="A block of steered layers; repeatable. Default: the fitted layers."
    )
    aligned: str | None = flag(
        None, metavar="MODEL", help="For --axis prompts; by default the aligned model of the fit."
    )
    suite: list[str] | None = flag(None, "--suite", "-s", metavar="NAME", help="As for `evaluate`.")
    limit: int = flag(40, min=1, metavar="N", help="Prompts per suite.")


def ablate(
    *,
    target: Target,
    aligner: AlignerPlace,
    run: AblationOptions,
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
    if run.axis not in AXES:
        raise InputError(f"--axis {run.axis}: expected one of {', '.join(AXES)}.")
    sources = run.source or ["aligned", "target"]
    if set(sources) - {"aligned", "target"}:
        raise InputError(f"--source {', '.join(sources)}: expected aligned or target.")
    multiples = _numbers(run.factors)
    blocks = [read_layers(text, option="--layers") for text in run.layers or []]
    names = run.suite or (
        ["contrast-harmful", "contrast-benign"] if run.axis == "gate" else ["contrast-harmful"]
    )
    subsets = load(names, data=run.data, limit=run.limit, seed=run.seed)
    wrong = [s.suite.name for s in subsets if s.suite.task != "reply"]
    if wrong:
        raise InputError(
            f"{', '.join(wrong)}: an ablation judges answers; give suites that are answered (task reply)."
        )
    model.check(target)
    fitted = load_aligner(aligner)
    if fitted.artifact.gate_only and run.axis != "gate":
        raise InputError(
            f"{aligner} is a gate alone, and --axis {run.axis} is about steering. Give --axis gate, or an "
            "aligner that was fitted with an aligned model."
        )
    context = MethodContext(model.load_for(fitted, target), fitted, model.load)
    if run.axis == "gate":
        rows = _gates(context, subsets, run.output)
        settings: list[Setting] = []
    else:
        settings, methods = _settings(context, run, fitted, multiples, sources, blocks)
        recipe = Recipe(methods, subsets, run.max_new_tokens, aligner)
        done = evaluate(recipe, run.output, RichStages(), overwrite=run.overwrite)
        rows = [{**row, "max_new_tokens": run.max_new_tokens} for row in ablation_rows(done.records)]
    report = _write(rows, settings, run, target, subsets)
    if as_json:
        print_json({"report": str(report), "results": rows})
    else:
        _show(rows, None if run.axis == "gate" else run.max_new_tokens)
        note(f"Report: {report}", style="bold")


def _settings(
    context: MethodContext,
    run: AblationOptions,
    fitted: Aligner,
    factors: list[float],
    sources: list[str],
    blocks: list[tuple[int, ...]],
) -> tuple[list[Setting], list[Method]]:
    from inferaligner.evaluation import ablation

    if run.axis == "prompts":
        aligned = context.load(run.aligned or fitted.artifact.provenance.guide)
        return ablation.prompt_count_methods(context, aligned, ablation.PROMPT_COUNTS, RichStages())
    settings = (
        ablation.position_settings(context)
        if run.axis == "positions"
        else ablation.strength_settings(context, factors, sources, blocks)
    )
    return settings, ablation.settings_of(context, settings)


def _gates(context: MethodContext, subsets: list[Subset], output: Path) -> list[ResultRow]:
    from inferaligner.evaluation.gate_ablation import gate_figures, gate_methods

    make_folder(output)
    suites = {s.suite.name: (s.suite.kind, [item.prompt for item in s.items]) for s in subsets}
    return gate_figures(gate_methods(context, RichStages()), suites, RichStages())


def _write(
    rows: list[ResultRow],
    settings: list[Setting],
    run: AblationOptions,
    target: str,
    subsets: list[Subset],
) -> Path:
    """Writes results.json and the report; returns the report's place."""
    from inferaligner.reporting.ablation import ablation_page
    from inferaligner.storage.json_io import dump

    about = [(s.suite.name, s.described) for s in subsets]
    if run.axis != "gate":
        about.append(("Answers", f"greedy, at most {run.max_new_tokens} tokens"))
    page = ablation_page(rows, settings, axis=run.axis, target=target, run=about)
    write_whole(run.output / "results.json", (dump(rows, indent=2) + "\n").encode())
    write_whole(run.output / "report.html", page.encode("utf-8", "replace"))
    return run.output / "report.html"


def _show(rows: list[ResultRow], tokens: int | None) -> None:
    from rich.table import Table

    from inferaligner.cli.terminal import results

    title = None if tokens is None else f"Answers of at most {tokens} tokens"
    table = Table("suite", "setting", "metric", "value", "95 % interval", "n", title=title)
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
