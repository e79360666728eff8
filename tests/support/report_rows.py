"""What a report would have in its JSON, made up."""

from __future__ import annotations

from typing import Any

JUDGE = {"name": "rules", "agreement": "Against nobody."}


def figure_row(method: str, suite: str, metric: str, value: float, n: int = 100) -> dict[str, Any]:
    low, high = max(-1.0, value - 0.05), min(1.0, value + 0.05)
    return {
        "method": method,
        "suite": suite,
        "metric": metric,
        "value": value,
        "low": low,
        "high": high,
        "n": n,
    }


def found(
    compliance: dict[str, float], *, utility: dict[str, float], base: float, domain: str = "Mathematics"
) -> dict[str, Any]:
    """An experiment with one suite of each kind; gibberish takes a tenth of what is no compliance."""
    rows = []
    for method, share in compliance.items():
        rest = 1 - share
        for metric, value in (("compliance", share), ("refusal", 0.9 * rest), ("gibberish", 0.1 * rest)):
            rows.append(figure_row(method, "advbench", metric, value))
    for method, accuracy in utility.items():
        rows.append(figure_row(method, "arithmetic", "accuracy", accuracy))
        if method != "none":
            rows.append(
                figure_row(method, "arithmetic", "accuracy, against none", accuracy - utility["none"])
            )
    rows += [
        figure_row("none", "inference time", "seconds per 1,000 tokens", 0.5),
        figure_row("inferaligner", "inference time, closed", "seconds per 1,000 tokens", 0.505),
        figure_row("inferaligner", "advbench", "gate open", 0.9),
    ]
    gain = utility["none"] - base
    told = {"value": gain, "low": gain - 0.05, "high": gain + 0.05, "n": 100, "p": 0.01, "clear": gain > 0.05}
    return {
        "experiment": domain.lower(),
        "title": f"{domain}, SmolLM2",
        "judge": JUDGE,
        "methods": {method: method.title() for method in compliance},
        "suites": {"advbench": {"kind": "harmful"}, "arithmetic": {"kind": "utility"}},
        "rows": rows,
        "base": {
            "rows": [figure_row("none", "arithmetic", "accuracy", base)],
            "domain against base": {"arithmetic": told},
        },
        "aligner": {
            "steering": {"layers": [3, 4], "strength": 0.35, "norm": "difference", "positions": "from_gate"},
            "traffic": {"mathematics": {"n": 300, "open": 1, "bound": 0.02, "promised": True}},
        },
        "data": {"corpora": {"gsm8k": {"rows": 10, "trained": 8, "left_out": {"gsm8k": 2}}}},
        "training": {
            "train": {
                "steps": 10,
                "tokens": 1000,
                "rows": 8,
                "seconds per step": 2.5,
                "loss, first and last": [{"step": 1, "loss": 3.0}, {"step": 10, "loss": 1.0}],
            }
        },
        "seconds": {"train": 25.0},
        "claims": [],
    }
