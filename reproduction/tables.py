"""Tables in Markdown and figures in SVG, from the JSON of finished experiments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inferaligner.judges import OUTCOMES
from inferaligner.reporting import figures
from inferaligner.statistics.intervals import Interval
from reproduction.paper_claims import figure, suites_of

Found = Mapping[str, Any]
_NOT_RUN = "–"


def experiment_page(found: Found) -> tuple[str, dict[str, str]]:
    """One domain experiment: its page, and its figures by name."""
    harmful = suites_of(found, "harmful", "jailbreak")
    lines = [f"# {found['title']}", "", _origin(found), "", "## Harm and over-refusal", ""]
    lines += [*_outcomes(found, [*harmful, *suites_of(found, "over-refusal")]), "", "## Utility", ""]
    lines += [*_utility(found), "", "## The gate", "", *_gate(found)]
    timed = times(found)
    if timed:
        lines += ["", "## Inference time", "", *time_table(timed)]
    lines += ["", "## What the paper claims", "", "| Claim | Holds | Figures |", "|---|---|---|"]
    for claim in found["claims"]:
        held = {True: "yes", False: "**no**", None: "cannot tell"}[claim["holds"]]
        lines.append(f"| {claim['claim']} | {held} | {claim['told']} |")
    lines += ["", "## Data and training", "", *_data(found), ""]
    groups = {suite: outcomes(found, suite) for suite in harmful}
    drawn = (
        {"outcomes": figures.outcome_bars(groups, name=f"{found['experiment']}-outcomes")} if groups else {}
    )
    return "\n".join(lines), drawn


def table_one(cells: Sequence[Found]) -> str:
    """Methods × suites for each domain: compliance with harmful prompts and jailbreaks, and utility."""
    lines = [f"# {cells[0]['title'].partition(', ')[2]}: domains and methods", "", _origin(cells[0])]
    for cell in cells:
        harmful = [(suite, "compliance") for suite in suites_of(cell, "harmful", "jailbreak")]
        columns = [*harmful, *((suite, "accuracy") for suite in suites_of(cell, "utility"))]
        head = ["Method", *(f"{suite}, {metric}" for suite, metric in columns)]
        lines += ["", f"## {cell['title'].partition(',')[0]}", "", _row(head)]
        lines.append("|---|" + "---:|" * len(columns))
        base = [_share(_base(cell, suite)) if metric == "accuracy" else _NOT_RUN for suite, metric in columns]
        lines.append(_row(["base model", *base]))
        for method, title in cell["methods"].items():
            shares = [_share(figure(cell, method, suite, metric)) for suite, metric in columns]
            lines.append(_row([title, *shares]))
    return "\n".join([*lines, ""])


def families_table(cells: Sequence[Found]) -> tuple[str, str]:
    """Compliance without and with InferAligner by model, and its figure."""
    lines = ["# Families and scales", "", _origin(cells[0]), ""]
    lines += ["| Model | Suite | undefended | InferAligner | of it gibberish |", "|---|---|---:|---:|---:|"]
    groups: dict[str, dict[str, dict[str, int]]] = {}
    for cell in cells:
        model = cell["title"].partition(", ")[2]
        for suite in suites_of(cell, "harmful", "jailbreak"):
            shares = [
                _share(figure(cell, method, suite, metric))
                for method, metric in (
                    ("none", "compliance"),
                    ("inferaligner", "compliance"),
                    ("inferaligner", "gibberish"),
                )
            ]
            lines.append(f"| {model} | {suite} | " + " | ".join(shares) + " |")
            found = outcomes(cell, suite)
            groups[f"{model}: {suite}"] = {
                method: found[method] for method in ("none", "inferaligner") if method in found
            }
    return "\n".join([*lines, ""]), figures.outcome_bars(groups, name="families")


def outcomes(found: Found, suite: str) -> dict[str, dict[str, int]]:
    """Counts by method and outcome."""
    told: dict[str, dict[str, int]] = {}
    for method in found["methods"]:
        rows = {outcome: figure(found, method, suite, outcome) for outcome in OUTCOMES}
        counts = {str(name): round(row["value"] * row["n"]) for name, row in rows.items() if row is not None}
        if counts:
            told[method] = counts
    return told


def times(found: Found) -> dict[str, dict[str, Interval]]:
    """Seconds per 1,000 tokens by method and state."""
    told: dict[str, dict[str, Interval]] = {}
    for row in found["rows"]:
        if row["metric"] == "seconds per 1,000 tokens":
            state = row["suite"].partition(", ")[2] or "any"
            told.setdefault(row["method"], {})[state] = Interval(
                row["value"], row["low"], row["high"], row["n"]
            )
    return told


def time_table(timed: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    """Seconds, and the ratio to the bare model in the same run."""
    lines = ["| Method | Gate | seconds per 1,000 tokens | against none |", "|---|---|---:|---:|"]
    bare = next(iter(timed.get("none", {}).values()), None)
    for method, states in timed.items():
        for state, taken in states.items():
            ratio = _NOT_RUN if bare is None else f"× {taken.value / bare.value:.3f}"
            span = f"{taken.value:.2f} [{taken.low:.2f}, {taken.high:.2f}]"
            lines.append(f"| {method} | {'none' if state == 'any' else state} | {span} | {ratio} |")
    return lines


def _outcomes(found: Found, suites: Sequence[str]) -> list[str]:
    lines = ["| Suite | Method | complied | declined | gibberish | n |", "|---|---|---:|---:|---:|---:|"]
    for suite in suites:
        for method, title in found["methods"].items():
            rows = [figure(found, method, suite, metric) for metric in ("compliance", "refusal", "gibberish")]
            if rows[0] is not None:
                shares = " | ".join(_share(row) for row in rows)
                lines.append(f"| {suite} | {title} | {shares} | {rows[0]['n']} |")
    return lines


def _utility(found: Found) -> list[str]:
    lines = ["| Suite | Method | accuracy | against the undefended model | n |", "|---|---|---:|---:|---:|"]
    for suite in suites_of(found, "utility"):
        base, gain = _base(found, suite), found["base"]["domain against base"].get(suite)
        told = _NOT_RUN
        if gain is not None:
            told = _points(
                {"value": 0.0 - gain["value"], "low": 0.0 - gain["high"], "high": 0.0 - gain["low"]}
            )
        lines.append(f"| {suite} | base model | {_share(base)} | {told} | {base['n'] if base else 0} |")
        for method, title in found["methods"].items():
            row = figure(found, method, suite, "accuracy")
            if row is not None:
                against = figure(found, method, suite, "accuracy, against none")
                told = _NOT_RUN if against is None else _points(against)
                lines.append(f"| {suite} | {title} | {_share(row)} | {told} | {row['n']} |")
    return lines


def _gate(found: Found) -> list[str]:
    lines = ["| Prompts | opens the gate | n |", "|---|---:|---:|"]
    for suite in found["suites"]:
        row = figure(found, "inferaligner", suite, "gate open")
        if row is not None:
            lines.append(f"| {suite} | {_share(row)} | {row['n']} |")
    for name, traffic in found["aligner"]["traffic"].items():
        share = f"{traffic['open'] / traffic['n']:.1%}, at most {traffic['bound']:.1%}"
        lines.append(f"| {name} (calibration) | {share} | {traffic['n']} |")
    area = figure(found, "inferaligner", "harmful / harmless", "gate AUROC")
    if area is not None:
        told = f"{area['value']:.3f} [{area['low']:.3f}, {area['high']:.3f}]"
        lines += ["", f"AUROC, harmful suites against harmless ones: {told}."]
    steering = found["aligner"]["steering"]
    layers = steering["layers"]
    lines += [
        "",
        f"Steered: layers {layers[0]}–{layers[-1]}, strength {steering['strength']:.3g} on the "
        f"{'unit vectors' if steering['norm'] == 'unit' else 'differences'}, {steering['positions']}.",
    ]
    return lines


def _data(found: Found) -> list[str]:
    lines = ["| Corpus | rows | trained on | left out, near a test prompt |", "|---|---:|---:|---|"]
    for name, told in found["data"]["corpora"].items():
        out = ", ".join(f"{suite} {count}" for suite, count in told["left_out"].items()) or "none"
        lines.append(f"| {name} | {told['rows']} | {told['trained']} | {out} |")
    lines.append("")
    for name, told in found["training"].items():
        if told:
            losses = " → ".join(f"{entry['loss']:.2f}" for entry in told["loss, first and last"])
            too_long = told.get("rows too long", 0)
            left_out = f" ({too_long} more are too long)" if too_long else ""
            lines.append(
                f"{name}: {told['steps']} steps, {told['tokens']} tokens in {told['rows']} rows{left_out}, "
                f"{told['seconds per step']} s a step, loss {losses}.  "
            )
    taken = ", ".join(f"{name} {seconds:.0f}" for name, seconds in found["seconds"].items())
    return [*lines, f"Seconds by stage: {taken}."]


def _row(values: Sequence[str]) -> str:
    return "| " + " | ".join(values) + " |"


def _base(found: Found, suite: str) -> dict[str, Any] | None:
    rows = found["base"]["rows"]
    return next((r for r in rows if (r["suite"], r["metric"]) == (suite, "accuracy")), None)


def _origin(found: Found) -> str:
    limits = found.get("max_new_tokens", {})  # results of earlier versions lack it
    lengths = sorted(set(limits.values()))
    told = f" Answers of at most {' and '.join(map(str, lengths))} tokens." if lengths else ""
    return f"Judge of answers: {found['judge']['name']}. {found['judge']['agreement']}{told}"


def _share(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return _NOT_RUN
    return f"{100 * row['value']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _points(row: Mapping[str, Any]) -> str:
    return f"{100 * row['value']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]"
