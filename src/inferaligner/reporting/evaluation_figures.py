"""The figures of an evaluation's report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inferaligner.evaluation.inference_time import SUITE as TIME_SUITE
from inferaligner.evaluation.metrics import BARE, HARMFUL_KINDS, HARMLESS_KINDS, ResultRow, grouped
from inferaligner.evaluation.records_file import Record
from inferaligner.judges import OUTCOMES
from inferaligner.reporting import figures
from inferaligner.reporting.go_no_go import pooled
from inferaligner.statistics.intervals import Interval

_TIMES = {"time": "seconds per 1,000 tokens", "first": "seconds to the first token"}


def evaluation_figures(
    records: Sequence[Record], rows: Sequence[ResultRow], titles: Mapping[str, str], method: str
) -> dict[str, str]:
    """SVG figures by name, one `outcomes-N` per suite.

    Args:
        records: of one run.
        rows: the results of the run.
        titles: names of the methods for readers.
        method: the method that the decision is about.
    """
    suites = grouped(records)
    return {
        **_outcomes(suites, titles),
        **_tradeoff(records, titles, method),
        **_gate(records, rows, suites, method),
        **_times(rows, titles),
    }


def _outcomes(
    suites: Mapping[str, Mapping[str, Sequence[Record]]], titles: Mapping[str, str]
) -> dict[str, str]:
    drawn: dict[str, str] = {}
    for name, methods in suites.items():
        if methods[BARE][0]["task"] != "reply":
            continue
        counts: dict[str, Mapping[str, int]] = {
            titles[method]: {outcome: sum(r["outcome"] == outcome for r in some) for outcome in OUTCOMES}
            for method, some in methods.items()
        }
        number = f"outcomes-{len(drawn)}"
        drawn[number] = figures.outcome_bars({f"{name} (n = {len(methods[BARE])})": counts}, name=number)
    return drawn


def _tradeoff(records: Sequence[Record], titles: Mapping[str, str], chosen: str) -> dict[str, str]:
    kinds = {record["kind"] for record in records}
    if not kinds & set(HARMFUL_KINDS) or not kinds & {"utility", "over-refusal"}:
        return {}
    utility = "utility" in kinds
    wanted: dict[str, Any] = {"correct": True} if utility else {"outcome": "compliance"}
    shares = {}
    for method, title in titles.items():
        answered = pooled(records, method, HARMFUL_KINDS, outcome="compliance")
        good = pooled(records, method, ("utility",) if utility else ("over-refusal",), **wanted)
        if answered.n and good.n:
            shares[title] = (answered, good)
    up = "accuracy" if utility else "harmless prompts answered"
    across = "harmful requests answered"
    return {"tradeoff": figures.tradeoff(shares, across=across, up=up, chosen=titles.get(chosen))}


def _gate(
    records: Sequence[Record],
    rows: Sequence[ResultRow],
    suites: Mapping[str, Mapping[str, Sequence[Record]]],
    method: str,
) -> dict[str, str]:
    scored = {
        name: [r["score"] for r in methods.get(method, []) if r.get("score") is not None]
        for name, methods in suites.items()
    }
    scored = {name: scores for name, scores in scored.items() if scores}
    if not scored:
        return {}
    opened = {
        r["suite"]: Interval(r["value"], r["low"], r["high"], r["n"])
        for r in rows
        if r["metric"] == "gate open" and r["method"] == method
    }
    whole = {name: rate for name, rate in opened.items() if " / " not in name}
    harmful = [name for name, methods in suites.items() if methods[BARE][0]["kind"] in HARMFUL_KINDS]
    drawn = {
        "scores": figures.score_distributions(scored, harmful=harmful),
        **_roc(records, method),
        "open": figures.open_rates(whole, name="open"),
    }
    domains = {
        f"{domain} ({suite.removeprefix('contrast-')})": rate
        for name, rate in opened.items()
        for suite, _, domain in [name.partition(" / ")]
        if domain and suite in harmful and rate.n >= 3
    }
    if domains:
        drawn["domains"] = figures.open_rates(domains, name="domains")
    return drawn


def _roc(records: Sequence[Record], method: str) -> dict[str, str]:
    ours = [r for r in records if r["method"] == method and r.get("score") is not None]
    harmful = [r["score"] for r in ours if r["kind"] in HARMFUL_KINDS]
    harmless = {kind: [r["score"] for r in ours if r["kind"] == kind] for kind in HARMLESS_KINDS}
    shown = {kind: scores for kind, scores in harmless.items() if scores}
    return {"roc": figures.roc_curves(harmful, shown)} if harmful and shown else {}


def _times(rows: Sequence[ResultRow], titles: Mapping[str, str]) -> dict[str, str]:
    drawn = {}
    for name, metric in _TIMES.items():
        seconds: dict[str, dict[str, Interval]] = {}
        for entry in rows:
            if entry["metric"] == metric and entry["suite"].startswith(TIME_SUITE):
                state = entry["suite"].removeprefix(TIME_SUITE).strip(", ") or "any"
                interval = Interval(entry["value"], entry["low"], entry["high"], entry["n"])
                seconds.setdefault(titles.get(entry["method"], entry["method"]), {})[state] = interval
        if seconds:
            drawn[name] = figures.time_bars(seconds, label=metric, name=name)
    return drawn
