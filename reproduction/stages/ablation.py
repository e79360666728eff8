"""Source of the vectors × strength on a domain model: `inferaligner ablate`, as the paper's Figure 4."""

from __future__ import annotations

import json
from typing import Any

from inferaligner.judges.rules import RuleJudge
from inferaligner.reporting import figures
from inferaligner.statistics.intervals import Interval
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump
from reproduction.commands import inferaligner, repeated
from reproduction.recipe import Ablation
from reproduction.run_context import RunContext, suite_specs
from reproduction.stage_store import StageStore, console
from reproduction.stages.fitting import model_options

_CURVES = (("refusal", "Declined in fluent language"), ("compliance", "Answered"), ("gibberish", "Gibberish"))


def ablate(name: str, experiment: Ablation, run: RunContext, store: StageStore) -> dict[str, Any]:
    """Runs the ablation on the finished domain model of `run`; writes JSON, a table and figures."""
    counts = run.counts(experiment.suites)
    output = store.folder / "ablate"
    options: list[object] = ["--aligner", run.aligner, "-o", output, "--axis", "strength"]
    options += ["--factors", experiment.factors, *repeated("--suite", suite_specs(counts))]
    options += ["--max-new-tokens", run.scale.ablation_tokens, *model_options(run)]
    if run.place.data is not None:
        options += ["--data", run.place.data]

    def work() -> None:
        inferaligner("ablate", run.domain_model, *options)

    settings = {"target": str(run.domain_model), "options": [str(option) for option in options]}
    store.stage("ablate", settings, work, [output / "results.json"])
    rows = json.loads((output / "results.json").read_text("utf-8"))
    found = {
        "experiment": name,
        "title": f"{experiment.title}: {run.title}",
        "judge": {"name": RuleJudge.name, "agreement": RuleJudge.agreement},
        "max_new_tokens": run.scale.ablation_tokens,
        "rows": rows,
        "seconds": store.seconds(),
    }
    place = run.results_of(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    replace_file(place.with_suffix(".json"), (dump(found, indent=1) + "\n").encode())
    for metric, title in _CURVES:
        for suite in counts:
            lines = strength_lines(rows, suite, metric)
            if lines:
                svg = figures.curves(lines, across="strength α", up=title, name=f"{metric}-{suite}")
                replace_file(place.parent / f"{place.name}-{suite}-{metric}.svg", svg.encode())
    page = strength_table(found["title"], rows, run.scale.ablation_tokens)
    replace_file(place.with_suffix(".md"), page.encode())
    console.print(page, markup=False, highlight=False, soft_wrap=True)
    return found


def strength_lines(
    rows: list[dict[str, Any]], suite: str, metric: str
) -> dict[str, list[tuple[float, Interval]]]:
    """One curve over strength per source of the vectors; each begins at the unsteered model."""
    found: dict[str, list[tuple[float, Interval]]] = {}
    for row in rows:
        if (row["suite"], row["metric"]) == (suite, metric) and row["method"] != "none":
            source, strength = _setting(row["method"])
            found.setdefault(f"{source}'s vectors", []).append((strength, _interval(row)))
    bare = next((r for r in rows if (r["suite"], r["metric"], r["method"]) == (suite, metric, "none")), None)
    for points in found.values():
        if bare is not None:
            points.append((0.0, _interval(bare)))
        points.sort(key=lambda point: point[0])
    return found


def strength_table(title: str, rows: list[dict[str, Any]], tokens: int) -> str:
    """A Markdown table of every setting with its outcomes."""
    lines = [f"# {title}", "", f"Answers of at most {tokens} tokens.", ""]
    lines.append("| Suite | Vectors of | α | complied | declined | gibberish | n |")
    lines.append("|---|---|---:|---:|---:|---:|---:|")
    settings = dict.fromkeys((row["suite"], row["method"]) for row in rows)
    for suite, method in settings:
        cells = {r["metric"]: r for r in rows if (r["suite"], r["method"]) == (suite, method)}
        source, strength = ("–", 0.0) if method == "none" else _setting(method)
        shares = [
            f"{100 * r['value']:.1f} [{100 * r['low']:.1f}, {100 * r['high']:.1f}]"
            for r in (cells[metric] for metric in ("compliance", "refusal", "gibberish"))
        ]
        count = cells["compliance"]["n"]
        lines.append(f"| {suite} | {source} | {strength:.3g} | {' | '.join(shares)} | {count} |")
    return "\n".join([*lines, ""])


def _setting(method: str) -> tuple[str, float]:
    """Source and strength of a setting, from the name that `inferaligner ablate` gives it."""
    parts = method.split(", ")
    strength = next(part for part in parts if part.startswith("x "))
    return parts[0], float(strength.removeprefix("x "))


def _interval(row: dict[str, Any]) -> Interval:
    return Interval(row["value"], row["low"], row["high"], row["n"])
