"""The page of an ablation: curves of outcomes, perplexity and safety over strength or number of prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from inferaligner.evaluation.ablation import Setting
from inferaligner.evaluation.metrics import GATE_SUITE, ResultRow
from inferaligner.judges import OUTCOMES
from inferaligner.judges.rules import RuleJudge
from inferaligner.reporting import figures
from inferaligner.reporting.html import render
from inferaligner.statistics.intervals import Interval
from inferaligner.version import __version__

_CURVES = (
    ("refusal", "Declined in fluent language", True),
    ("compliance", "Answered", True),
    ("gibberish", "No longer language", True),
    ("log perplexity", "Log perplexity under the unsteered model", False),
    ("safety score", "Safety score", True),
)


def ablation_page(
    rows: Sequence[ResultRow],
    settings: Sequence[Setting],
    *,
    axis: str,
    target: str,
    run: Sequence[tuple[str, str]],
) -> str:
    """One HTML page: curves over strength or prompts, bars of outcomes for positions, rates of gates.

    Args:
        rows: results of the run.
        settings: the settings that were compared; empty for gates.
        axis: `strength`, `prompts`, `positions` or `gate`.
        target: the model.
        run: suites and settings of the run by name, for the table at the end.
    """
    drawn: dict[str, str] = {}
    by = {setting.name: setting for setting in settings}
    across: Callable[[Setting], float] = (
        (lambda setting: setting.prompts) if axis == "prompts" else (lambda setting: setting.strength)
    )
    label = "prompts per class" if axis == "prompts" else "strength α"
    suites = list(dict.fromkeys(str(r["suite"]) for r in rows))
    if axis in ("strength", "prompts"):
        for number, suite in enumerate(suites):
            for metric, title, shares in _CURVES:
                lines = _lines(rows, by, suite, metric, across)
                if lines:
                    name = f"{metric.replace(' ', '-')}-{number}"
                    drawn[name] = figures.curves(
                        lines, across=label, up=f"{title} ({suite})", shares=shares, name=name
                    )
    if axis == "positions":
        drawn["outcomes"] = figures.outcome_bars(_outcomes(rows, suites))
    if axis == "gate":
        for number, suite in enumerate(suites):
            rates = _rates(rows, suite, "gate open")
            if rates:
                drawn[f"gates-{number}"] = figures.open_rates(
                    rates, name=f"gates-{number}", label=f"prompts of {suite} that open"
                )
        areas = _rates(rows, GATE_SUITE, "gate AUROC")
        if areas:
            drawn["auroc"] = figures.open_rates(areas, name="auroc", label="AUROC, harmful against harmless")
    judge = RuleJudge()
    return render(
        "ablation.html",
        title=f"Ablation on {target}",
        version=__version__,
        axis=axis,
        target=target,
        run=run,
        judge=judge.name,
        agreement=judge.agreement,
        drawn=list(drawn),
        rows=[
            (
                r["suite"],
                r["method"],
                r["metric"],
                f"{r['value']:.3g}",
                f"{r['low']:.3g} to {r['high']:.3g}",
                r["n"],
            )
            for r in rows
        ],
        figures=drawn,
    )


def _rates(rows: Sequence[ResultRow], suite: str, metric: str) -> dict[str, Interval]:
    return {
        r["method"]: Interval(r["value"], r["low"], r["high"], r["n"])
        for r in rows
        if (r["suite"], r["metric"]) == (suite, metric)
    }


def _outcomes(rows: Sequence[ResultRow], suites: Sequence[str]) -> dict[str, dict[str, dict[str, int]]]:
    counts: dict[str, dict[str, dict[str, int]]] = {suite: {} for suite in suites}
    for r in rows:
        if r["metric"] in OUTCOMES:
            counts[r["suite"]].setdefault(r["method"], {})[r["metric"]] = round(r["value"] * r["n"])
    return counts


def _lines(
    rows: Sequence[ResultRow],
    settings: Mapping[str, Setting],
    suite: str,
    metric: str,
    across: Callable[[Setting], float],
) -> dict[str, list[tuple[float, Interval]]]:
    lines: dict[str, list[tuple[float, Interval]]] = {}
    for entry in rows:
        if (entry["suite"], entry["metric"]) == (suite, metric) and entry["method"] in settings:
            setting = settings[entry["method"]]
            point = across(setting), Interval(entry["value"], entry["low"], entry["high"], entry["n"])
            lines.setdefault(setting.line, []).append(point)
    bare = next((r for r in rows if (r["suite"], r["metric"], r["method"]) == (suite, metric, "none")), None)
    for points in lines.values():
        if bare is not None:
            points.append((0.0, Interval(bare["value"], bare["low"], bare["high"], bare["n"])))
        points.sort(key=lambda point: point[0])
    return lines
