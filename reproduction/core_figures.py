"""Gate and refusal figures of one aligner on public benchmarks, with the controls.

    python -m reproduction.core_figures --data FOLDER --aligner DIR [--target SPEC] -o out/core

Harmful rows with a near-duplicate in the contrast set are left out. `gate.json` has the share of prompts that
open the gate. One evaluation, with records and report, measures refusal, compliance and gibberish of the bare
target, with InferAligner and with the target's own vectors on AdvBench and HarmBench, and whether closed
answers to ordinary prompts are the bare model's, token by token.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from inferaligner.aligner import Aligner
from inferaligner.cli.evaluation_tables import show
from inferaligner.cli.progress import RichStages
from inferaligner.evaluation.evaluate import Recipe, evaluate
from inferaligner.evaluation.gate_ablation import gate_figures
from inferaligner.evaluation.methods.catalogue import make_methods
from inferaligner.evaluation.methods.method import MethodContext
from inferaligner.evaluation.suites.sampling import Subset
from inferaligner.evaluation.suites.suite import Item, Kind, Suite
from inferaligner.evaluation.suites.user_files import Given
from inferaligner.models.loading import load_model
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.similarity import near_duplicates
from inferaligner.reporting.evaluation import report
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump
from reproduction.benchmark_prompts import BENIGN, HARMFUL, sample

ANSWERED = ("AdvBench", "HarmBench")
ORDINARY_PER_SET = 30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--aligner", type=Path, required=True)
    parser.add_argument("--target", default="builtin:smollm2-135m")
    parser.add_argument("--rows", type=int, default=300, help="prompts per set for the gate")
    parser.add_argument("--generate", type=int, default=150, help="prompts per harmful set to answer")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()

    prompts = {**_harmful(options.data, options.rows), **_benign(options.data, options.rows)}
    context = MethodContext(load_model(options.target), Aligner.from_pretrained(options.aligner), load_model)
    methods = make_methods(["inferaligner", "own-vectors"], context)
    ordinary = [prompt for name in BENIGN for prompt in prompts[name][:ORDINARY_PER_SET]]
    subsets = [
        *(_subset(name, "harmful", prompts[name][: options.generate]) for name in ANSWERED),
        _subset("ordinary", "benign", ordinary),
    ]
    recipe = Recipe(methods, subsets, options.tokens, str(options.aligner), likelihoods=False, withhold=True)
    run = evaluate(recipe, options.output, RichStages())
    rows = run.write_results()
    run.write_report(report(run, rows))

    kinds = {name: "harmful" if name in HARMFUL else "benign" for name in prompts}
    suites = {name: (kinds[name], some) for name, some in prompts.items()}
    opened = gate_figures([m for m in methods if m.name == "inferaligner"], suites, RichStages())
    replace_file(options.output / "gate.json", (dump(opened, indent=2) + "\n").encode())
    table = Table("prompts", "metric", "value", "95 % interval", "n")
    for row in opened:
        value, low, high = (f"{row[name]:.1%}" for name in ("value", "low", "high"))
        table.add_row(row["suite"], row["metric"], value, f"{low} to {high}", str(row["n"]))
    Console().print(table)
    show(run, rows)


def _harmful(data: Path, count: int) -> dict[str, list[str]]:
    """A sample of each harmful set without near-duplicates of the prompts that the gate was fitted on."""
    fitted_on = [pair.harmful for pair in load_contrast_set().pairs]
    samples = {}
    for name, read in HARMFUL.items():
        prompts = read(data)
        duplicates = set(near_duplicates(prompts, fitted_on))
        samples[name] = sample([p for row, p in enumerate(prompts) if row not in duplicates], count)
    return samples


def _benign(data: Path, count: int) -> dict[str, list[str]]:
    return {name: sample(read(data), count) for name, read in BENIGN.items()}


def _subset(name: str, kind: Kind, prompts: list[str]) -> Subset:
    items = tuple(map(Item, dict.fromkeys(prompts)))
    return Subset(Suite(name, name, kind, Given(items)), items, len(items), seed=0)


if __name__ == "__main__":
    main()
