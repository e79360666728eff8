"""The gate from the paper's extraction pair, whose halves differ in sentence form, against the gate of `fit`.

Two gates for one domain model are compared by their open rates, without generating: one from 64 AdvBench
commands and 64 TruthfulQA questions, as in the paper, and the one that `fit` made from matched prompts. Both
score harmful questions, harmless commands and the domain's own traffic.
"""

from __future__ import annotations

import json
import random
from typing import Any

from inferaligner.errors import InputError
from inferaligner.evaluation.suites.data_files import rows_of
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump
from reproduction.commands import inferaligner, repeated
from reproduction.recipe import Confound
from reproduction.run_context import RunContext, suite_specs
from reproduction.stage_store import StageStore, console
from reproduction.stages.fitting import model_options
from reproduction.stages.training import sibling
from reproduction.training_rows import BENIGN

PER_CLASS = 64
_PAIR = (("advbench/advbench.csv", "goal"), ("truthfulqa/TruthfulQA.csv", "Question"))


def confound(name: str, experiment: Confound, run: RunContext, store: StageStore) -> dict[str, Any]:
    """Fits the paper's gate on the finished domain model of `run`, and scores prompts with both gates."""
    counts = run.counts(experiment.suites)
    files = [store.folder / "pair" / f"{side}.jsonl" for side in ("harmful", "harmless")]
    paper, guide = store.folder / "fit" / "aligner", sibling(run)

    def write() -> None:
        files[0].parent.mkdir(parents=True, exist_ok=True)
        for file, prompts in zip(files, _pair(run), strict=True):
            rows = [json.dumps({"prompt": prompt}) + "\n" for prompt in prompts]  # some have several lines
            replace_file(file, "".join(rows).encode())

    def fit() -> None:
        inferaligner(
            "fit", run.domain_model, "--aligned", guide, "-o", paper, "--harmful", files[0],
            "--harmless", files[1], "--paper", *model_options(run),
        )  # fmt: skip

    store.stage("pair", {"per class": PER_CLASS, "seed": run.scale.seed}, write, files)
    store.stage("fit", {"target": str(run.domain_model), "aligned": guide}, fit, [paper])
    benign = run.store.folder / "rows" / BENIGN
    suites = [*suite_specs(counts), f"benign={benign}"]
    found: dict[str, Any] = {"experiment": name, "title": f"{experiment.title}: {run.title}", "rows": {}}
    for gate, aligner in (("the paper's pair", paper), ("matched prompts", run.aligner)):
        output = store.folder / f"gate-{aligner.parent.parent.name}"
        options: list[object] = ["--aligner", aligner, "-o", output, "--axis", "gate", "--limit", 10_000]
        options += [*repeated("--suite", suites), *model_options(run)]
        if run.place.data is not None:
            options += ["--data", run.place.data]

        def work(options: list[object] = options) -> None:
            inferaligner("ablate", run.domain_model, *options)

        settings = {"options": [str(option) for option in options]}
        store.stage(output.name, settings, work, [output / "results.json"])
        rows = json.loads((output / "results.json").read_text("utf-8"))
        found["rows"][gate] = [row for row in rows if row["method"] == "fitted"]
    place = run.results_of(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place.with_suffix(".json"), (dump(found, indent=1) + "\n").encode())
    page = gate_table(found["title"], found["rows"])
    replace_file(place.with_suffix(".md"), page.encode())
    console.print(page, markup=False, highlight=False, soft_wrap=True)
    return found


def gate_table(title: str, rows: dict[str, list[dict[str, Any]]]) -> str:
    """Open rates of each gate by suite."""
    lines = [f"# {title}", "", "| Prompts | " + " | ".join(rows) + " | n |"]
    lines.append("|---|" + "---:|" * len(rows) + "---:|")
    for suite in dict.fromkeys(row["suite"] for gate in rows.values() for row in gate):
        cells = [next((r for r in gate if r["suite"] == suite), None) for gate in rows.values()]
        shares = [
            "–" if r is None else f"{100 * r['value']:.1f} [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
            for r in cells
        ]
        count = next(r["n"] for r in cells if r is not None)
        lines.append(f"| {suite} | {' | '.join(shares)} | {count} |")
    return "\n".join(
        [
            *lines,
            "",
            "Share of prompts that open the gate, in per cent; the last line is its AUROC × 100.",
            "",
        ]
    )


def _pair(run: RunContext) -> list[list[str]]:
    """64 harmful and 64 harmless prompts, drawn with the scale's seed."""
    if run.place.examples:
        prompts = load_contrast_set().part("extraction", wrapped=False)
        return [[p.text for p in prompts if p.harmful is side][:12] for side in (True, False)]
    found = []
    for file, column in _PAIR:
        place = None if run.place.data is None else run.place.data / file
        if place is None or not place.is_file():
            raise InputError(
                f"The paper's pair needs {file} in the folder of --data, which has no such file."
            )
        texts = list(dict.fromkeys(" ".join(row[column].split()) for row in rows_of(place)))
        found.append(random.Random(f"{run.scale.seed}/{file}").sample(texts, PER_CLASS))
    return found
