"""The report of an evaluation: verdict, methods against suites, figures, hidden samples, how it was done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inferaligner.evaluation.comparison import compare
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
from inferaligner.evaluation.records_file import Record
from inferaligner.evaluation.run_folder import RunFolder
from inferaligner.judges.rules import RuleJudge
from inferaligner.reporting.evaluation_figures import evaluation_figures
from inferaligner.reporting.evaluation_samples import samples
from inferaligner.reporting.go_no_go import CRITERIA, pooled, verdict
from inferaligner.reporting.html import render
from inferaligner.statistics.intervals import Interval, clopper_pearson
from inferaligner.version import __version__

MAIN_METRIC = {"harmful": "refusal", "jailbreak": "refusal", "over-refusal": "refusal"}
"""What a suite of a kind is told by in the table; utility has its accuracy, benign traffic its identity."""

COMPANIONS = (("gibberish", "outcome", "gibberish"), ("loops", LOOPED, True), ("ended", ENDED, True))
"""What the table says of the answers to harmful prompts besides their outcome: heading, field of the record,
value."""


def report(folder: RunFolder, rows: Sequence[ResultRow]) -> str:
    """One HTML page, nothing loaded from anywhere. Answers to harmful prompts are cut, and behind a click."""
    run, records = folder.run, folder.records
    titles = {name: str(entry["title"]) for name, entry in run["methods"].items()}
    told = verdict(records, titles)
    judge = RuleJudge()
    drawn = evaluation_figures(records, rows, titles, told.method)
    return render(
        "evaluation.html",
        title=f"Evaluation of {run['target']}",
        version=__version__,
        verdict=told,
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
        domain_rows=_domain_rows(rows, told.method),
        time_rows=_time_rows(rows, titles),
        samples=samples(records, titles),
        settings=[
            ("Target", f"{run['target']}, {run['dtype']} on {run['device']}"),
            ("Aligner", str(run.get("aligner") or "none")),
            ("Answers", f"greedy, at most {run['max new tokens']} tokens, batches of {run['batch size']}"),
            ("Versions", ", ".join(f"{name} {version}" for name, version in run["versions"].items())),
        ],
        figures=drawn,
        outcomes=[name for name in drawn if name.startswith("outcomes-")],
    )


def method_table(records: Sequence[Record], titles: Mapping[str, str]) -> dict[str, Any]:
    """Columns are suites; a cell is `(value, interval, mark)`, the mark telling what is not clear."""
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
            # Records of earlier versions lack some fields.
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
    found: list[tuple[str, ...]] = []
    for entry in rows:
        if entry["judge"] in (None, "rules") or "against none" in entry["metric"]:
            continue
        value, spread = _shown(entry, share="score" not in entry["metric"])
        name = titles.get(entry["method"], entry["method"])
        found.append((entry["suite"], name, entry["judge"], entry["metric"], value, spread, str(entry["n"])))
    return found


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
    found: list[tuple[str, ...]] = []
    for entry in rows:
        if not entry["suite"].startswith(TIME_SUITE):
            continue
        state = entry["suite"].removeprefix(TIME_SUITE).strip(", ") or "any"
        name = titles.get(entry["method"], entry["method"])
        found.append((name, state, entry["metric"], *_shown(entry, share=False), str(entry["n"])))
    return found


def gate_area(rows: Sequence[ResultRow], method: str) -> ResultRow | None:
    """The AUROC of a method's gate."""
    return next((r for r in rows if (r["suite"], r["method"]) == (GATE_SUITE, method)), None)
