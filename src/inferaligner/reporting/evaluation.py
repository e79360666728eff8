"""The report of an evaluation: decision, methods against suites, figures, examples, the aligner, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import InferAlignerError
from inferaligner.evaluation.inference_time import SUITE as TIME_SUITE
from inferaligner.evaluation.metrics import (
    BARE,
    ENDED,
    GATE_SUITE,
    HARMFUL_KINDS,
    LOOPED,
    ResultRow,
    grouped,
)
from inferaligner.evaluation.paired_statistics import compare
from inferaligner.evaluation.records_file import Record
from inferaligner.evaluation.run_folder import RunFolder
from inferaligner.judges.rules import RuleJudge
from inferaligner.reporting.artifact_page import aligner_figures, aligner_sections
from inferaligner.reporting.evaluation_figures import evaluation_figures
from inferaligner.reporting.examples import examples
from inferaligner.reporting.go_no_go import CRITERIA, go_no_go, pooled
from inferaligner.reporting.html import render
from inferaligner.statistics.intervals import Interval, clopper_pearson
from inferaligner.version import __version__

MAIN_METRIC = {"harmful": "refusal", "jailbreak": "refusal", "over-refusal": "refusal"}
"""The metric of a kind of suite in the table; utility has accuracy, benign prompts the same answer."""

COMPANIONS = (("gibberish", "outcome", "gibberish"), ("loops", LOOPED, True), ("ended", ENDED, True))
"""More columns on the answers to harmful prompts: heading, field of the record, value."""


def titles_of(folder: RunFolder) -> dict[str, str]:
    """The methods of a run by their names, as a reader should know them."""
    return {name: str(entry["title"]) for name, entry in folder.run["methods"].items()}


def report(folder: RunFolder, rows: Sequence[ResultRow]) -> str:
    """The report as one HTML page that loads nothing.

    Answers to harmful prompts that are no refusals are cut and shown after a click, or left out in a run that
    withholds them. The fit of the aligner is part of the page if the aligner is still in its folder.

    Args:
        folder: the run.
        rows: its results.
    """
    run, records, titles = folder.run, folder.records, titles_of(folder)
    decision = go_no_go(records, titles)
    judge = RuleJudge()
    drawn = evaluation_figures(records, rows, titles, decision.method)
    artifact = _artifact(run)
    return render(
        "evaluation.html",
        title=f"Evaluation of {run['target']}",
        version=__version__,
        go_no_go=decision,
        criteria=CRITERIA,
        target=run["target"],
        aligner=run.get("aligner") or "none",
        table=method_table(records, titles),
        suites=[
            (name, s["kind"], s["prompts"], s["citation"], s["licence"]) for name, s in run["suites"].items()
        ],
        methods=[(titles[name], _settings(entry)) for name, entry in run["methods"].items()],
        judge=judge.name,
        agreement=judge.agreement,
        judged=[(j.judge, j.agreement or "not measured", len(j.judgements)) for j in folder.judged],
        judged_rows=_judged_rows(rows, titles),
        leaning_rows=_leaning_rows(rows, titles),
        domain_rows=_domain_rows(rows, decision.method),
        time_rows=_time_rows(rows, titles),
        examples=examples(records, titles, decision.method, withhold=bool(run.get("withhold"))),
        withhold=bool(run.get("withhold")),
        fit=None if artifact is None else aligner_sections(artifact),
        lengths=folder.lengths.capitalize(),
        settings=[
            ("Target", f"{run['target']}, {run['dtype']} on {run['device']}"),
            ("Aligner", str(run.get("aligner") or "none")),
            ("Answers", f"greedy, {folder.lengths}, batches of {run['batch size']}"),
            ("Versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())),
        ],
        figures={**drawn, **({} if artifact is None else aligner_figures(artifact))},
        outcomes=[name for name in drawn if name.startswith("outcomes-")],
    )


def _artifact(run: Mapping[str, Any]) -> AlignerArtifact | None:
    """The aligner of the run, if its folder still holds it; a hub id is not fetched again."""
    if run.get("aligner") is None or not Path(run["aligner"]).is_dir():
        return None
    try:
        artifact = AlignerArtifact.read(run["aligner"])
    except InferAlignerError:
        return None
    digests = {entry.get("aligner") for entry in run["methods"].values()}
    return artifact if artifact.digest() in digests else None


def method_table(records: Sequence[Record], titles: Mapping[str, str]) -> dict[str, Any]:
    """Methods against suites: `columns`, `companions` and `rows` with a `(value, interval, mark)` per suite.

    The mark is ▲ or ▼ for a clear difference to the bare model, ≈ for one that is not clear, = for none.
    """
    suites = grouped(records)
    columns = []
    for name, methods in suites.items():
        first = next(iter(methods.values()))[0]
        columns.append((name, first["kind"], _metric(first)))
    body = []
    for method, title in titles.items():
        cells = []
        for name, kind, metric in columns:
            rows, bare = suites[name].get(method, []), suites[name].get(BARE, [])
            values = [_value(r, b, kind, metric) for r, b in zip(rows, bare, strict=False)]
            base = [_value(b, b, kind, metric) for b in bare]
            cells.append(_cell(values, base, is_bare=method == BARE))
        companions = [
            # Records of earlier versions do not have all fields.
            pooled([r for r in records if name in r], method, HARMFUL_KINDS, **{name: value})
            for _, name, value in COMPANIONS
        ]
        body.append((title, cells, [_percent(share) for share in companions]))
    headings = [(name, f"{kind}: {metric}") for name, kind, metric in columns]
    return {"columns": headings, "companions": [heading for heading, _, _ in COMPANIONS], "rows": body}


def _percent(share: Interval) -> str:
    return "–" if share.n == 0 else f"{100 * share.value:.0f} %"


def _metric(record: Record) -> str:
    if record["task"] != "reply":
        return "accuracy"
    return MAIN_METRIC.get(record["kind"], "same answer")


def _value(record: Record, bare: Record, kind: str, metric: str) -> bool:
    if metric == "accuracy":
        return bool(record["correct"])
    if metric == "refusal":
        return bool(record["outcome"] == "refusal")
    return bool(record["digest"] == bare["digest"])


def _cell(values: Sequence[bool], bare: Sequence[bool], *, is_bare: bool) -> tuple[str, str, str]:
    if not values:
        return "–", "", ""
    share = clopper_pearson(sum(values), len(values))
    mark = ""
    if not is_bare and list(values) != list(bare):
        difference = compare(values, bare)
        mark = ("▲" if difference.value > 0 else "▼") if difference.clear else "≈"
    elif not is_bare:
        mark = "="
    return f"{100 * share.value:.0f} %", f"{100 * share.low:.0f} to {100 * share.high:.0f} %", mark


def _settings(entry: Mapping[str, Any]) -> str:
    kept = {name: value for name, value in entry.items() if name != "title"}
    parts = []
    for name, value in kept.items():
        shown = f"{value:.3g}" if isinstance(value, float) else str(value)
        parts.append(f"{name} {shown[:24] if name == 'aligner' else shown}")
    return "; ".join(parts) or "–"


def _shown(entry: ResultRow, *, share: bool = True) -> tuple[str, str]:
    value, low, high = (entry[name] for name in ("value", "low", "high"))
    if share:
        return f"{100 * value:.0f} %", f"{100 * low:.0f} to {100 * high:.0f} %"
    return f"{value:.3g}", f"{low:.3g} to {high:.3g}"


def _judged_rows(rows: Sequence[ResultRow], titles: Mapping[str, str]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = []
    for entry in rows:
        if entry["judge"] in (None, "rules") or "against none" in entry["metric"]:
            continue
        value, spread = _shown(entry, share="score" not in entry["metric"])
        name = titles.get(entry["method"], entry["method"])
        cells.append((entry["suite"], name, entry["judge"], entry["metric"], value, spread, str(entry["n"])))
    return cells


def _leaning_rows(rows: Sequence[ResultRow], titles: Mapping[str, str]) -> list[tuple[str, ...]]:
    return [
        (r["suite"], titles[r["method"]], *_shown(r, share=False), str(r["n"]))
        for r in rows
        if r["metric"] == "refusal leaning (log odds)"
    ]


def _domain_rows(rows: Sequence[ResultRow], method: str) -> list[tuple[str, ...]]:
    return [
        (r["suite"], *_shown(r), str(r["n"]))
        for r in rows
        if r["metric"] == "gate open" and r["method"] == method and " / " in r["suite"]
    ]


def _time_rows(rows: Sequence[ResultRow], titles: Mapping[str, str]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = []
    for entry in rows:
        if not entry["suite"].startswith(TIME_SUITE):
            continue
        state = entry["suite"].removeprefix(TIME_SUITE).strip(", ") or "any"
        name = titles.get(entry["method"], entry["method"])
        cells.append((name, state, entry["metric"], *_shown(entry, share=False), str(entry["n"])))
    return cells


def gate_area(rows: Sequence[ResultRow], method: str) -> ResultRow | None:
    """The AUROC of a method's gate."""
    return next((r for r in rows if (r["suite"], r["method"]) == (GATE_SUITE, method)), None)
