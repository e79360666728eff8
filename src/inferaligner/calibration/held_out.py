"""Figures of a gate on prompts that had no part in fitting it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from inferaligner.calibration.samples import Sample
from inferaligner.statistics import bootstrap_auroc, clopper_pearson


def held_out_figures(
    scores: Sequence[float], samples: Sequence[Sample], benign: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """AUROC and open rates with 95 % intervals, per kind of prompt; scores are positive when open."""
    figures: dict[str, Any] = {"open": {}}

    def rate(name: str, values: Sequence[float]) -> None:
        if values:
            figures["open"][name] = asdict(clopper_pearson(sum(v > 0 for v in values), len(values)))

    rows = list(zip(scores, samples, strict=True))
    rate("harmful", [v for v, s in rows if s.harmful and not s.wrapped])
    rate("harmful, wrapped", [v for v, s in rows if s.harmful and s.wrapped])
    rate("harmless twins", [v for v, s in rows if not s.harmful and s.group == "pairs" and not s.wrapped])
    rate("harmless, wrapped", [v for v, s in rows if not s.harmful and s.wrapped])
    for group in sorted({s.group for _, s in rows if not s.harmful and s.group != "pairs"}):
        rate(group, [v for v, s in rows if s.group == group and not s.wrapped])
    rate("ordinary traffic", [v for v, s in rows if s.ordinary])
    for name, values in benign.items():
        rate(f"your benign prompts: {name}", list(values))
    labels = [s.harmful for _, s in rows]
    if any(labels) and not all(labels):
        figures["auroc"] = asdict(bootstrap_auroc(list(scores), labels, draws=500))
    return figures
