"""Report: the results of a domain experiment as JSON for the tables, without any answer in it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inferaligner.artifact import AlignerArtifact
from inferaligner.evaluation.paired_statistics import compare
from inferaligner.evaluation.run_folder import RunFolder
from inferaligner.judges.rules import RuleJudge
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump
from inferaligner.version import __version__
from reproduction.fine_tuning import TIMES
from reproduction.paper_claims import claims
from reproduction.run_context import RunContext
from reproduction.stage_store import console
from reproduction.stages.evaluation import BASE, SAFETY, UTILITY
from reproduction.tables import experiment_page


def report(run: RunContext) -> dict[str, Any]:
    """Writes `results/SCALE/EXPERIMENT-FAMILY.json`, a page and a figure; returns the content of the JSON."""
    folder = run.store.folder
    runs = {name: RunFolder(folder / name) for name in (SAFETY, UTILITY, BASE)}
    found: dict[str, Any] = {
        "experiment": run.name,
        "title": run.title,
        "scale": run.config.name,
        "family": run.family_name,
        "models": {"target": run.family.target, "aligned": run.family.aligned or "trained by recipe"},
        "inferaligner": __version__,
        "judge": {"name": RuleJudge.name, "agreement": RuleJudge.agreement},
        "data": _json(folder / "rows.done.json")["found"],
        "training": {name: _times(folder / name / TIMES) for name in ("train", "safety-sft")},
        "aligner": _aligner(AlignerArtifact.read(run.aligner)),
        "suites": {
            name: {key: suite[key] for key in ("title", "kind", "task", "prompts", "licence", "digest")}
            for evaluation in (runs[SAFETY], runs[UTILITY])
            for name, suite in evaluation.run["suites"].items()
        },
        "methods": {name: method["title"] for name, method in runs[SAFETY].run["methods"].items()},
        "max_new_tokens": {name: runs[name].run["max new tokens"] for name in (SAFETY, UTILITY)},
        "rows": [*runs[SAFETY].results(), *runs[UTILITY].results()],
        "same answer": same_answer(runs[SAFETY].records),
        "base": {"rows": runs[BASE].results(), "domain against base": _against_base(runs)},
        "seconds": run.store.seconds(),
        "reported": run.experiment.reported,
    }
    found["claims"] = [asdict(claim) for claim in claims(found)]
    run.result.parent.mkdir(parents=True, exist_ok=True)
    replace_file(run.result.with_suffix(".json"), (dump(found, indent=1) + "\n").encode())
    page, figures = experiment_page(found)
    for name, svg in figures.items():
        replace_file(run.result.parent / f"{run.result.name}-{name}.svg", svg.encode())
    replace_file(run.result.with_suffix(".md"), page.encode())
    console.print(page, markup=False, highlight=False, soft_wrap=True)
    return found


def same_answer(records: Sequence[dict[str, Any]]) -> float:
    """The share of the bare model's commonest answer among all its generated answers.

    A domain model that has lost general dialogue answers "No" to every prompt, which judges count as
    compliance.
    """
    answers = Counter(r["response"].strip() for r in records if r["method"] == "none" and "response" in r)
    return max(answers.values()) / answers.total() if answers else 0.0


def _against_base(runs: dict[str, RunFolder]) -> dict[str, Any]:
    """The domain model's accuracy minus its base's, on the same prompts, by suite."""
    found: dict[str, Any] = {}
    before = _correct(runs[BASE].records)
    for suite, after in _correct(runs[UTILITY].records).items():
        rows = sorted(set(after) & set(before.get(suite, {})))
        if rows:
            difference = compare([after[row] for row in rows], [before[suite][row] for row in rows])
            found[suite] = {**asdict(difference), "clear": difference.clear}
    return found


def _correct(records: Sequence[dict[str, Any]]) -> dict[str, dict[int, bool]]:
    found: dict[str, dict[int, bool]] = {}
    for record in records:
        if record["method"] == "none" and "correct" in record:
            found.setdefault(record["suite"], {})[record["row"]] = bool(record["correct"])
    return found


def _aligner(artifact: AlignerArtifact) -> dict[str, Any]:
    point = artifact.operating_point
    return {
        "gate": {"kind": artifact.gate.kind, "reads": [asdict(read) for read in artifact.gate.reads]},
        "steering": artifact.steering.model_dump(mode="json"),
        "held out": artifact.calibration.get("held_out", {}),
        "traffic": {}
        if point is None
        else {
            name: {"n": record.n, "open": record.open, "bound": record.bound, "promised": record.promised}
            for name, record in point.traffic.items()
        },
    }


def _times(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    found = _json(file)
    losses = found.pop("loss")
    found["loss, first and last"] = [losses[0], losses[-1]] if losses else []
    found["seconds per step"] = round(found["seconds"] / max(1, found["steps"]), 2)
    return found


def _json(file: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return found
