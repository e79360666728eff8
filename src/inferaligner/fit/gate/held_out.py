"""Figures of a gate on prompts that had no part in fitting it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from inferaligner.fit.samples import Sample
from inferaligner.method.decision import opens
from inferaligner.statistics.intervals import bootstrap_auroc, clopper_pearson

Groups = Mapping[str, Sequence[float]]

YOURS = "your benign prompts: "
"""Before the name of a traffic of the user's, among the groups."""


def held_out_figures(scores: Sequence[float], samples: Sequence[Sample], benign: Groups) -> dict[str, Any]:
    """AUROC and open rates with 95 % intervals, per kind of prompt; scores are positive when open.

    The rate of "harmful" is the true-positive rate at the operating point.
    """
    groups = held_out_groups(scores, samples)
    figures = rates(groups, benign)
    labels = [sample.harmful for sample in samples]
    if any(labels) and not all(labels):
        figures["auroc"] = asdict(bootstrap_auroc(list(scores), labels, draws=500))
    return figures


def held_out_groups(scores: Sequence[float], samples: Sequence[Sample]) -> dict[str, list[float]]:
    """The scores by kind of prompt; a prompt may be of several, and a kind without prompts is left out."""
    rows = list(zip(scores, samples, strict=True))
    groups = {
        "harmful": [v for v, s in rows if s.harmful and not s.wrapped],
        "harmful, wrapped": [v for v, s in rows if s.harmful and s.wrapped],
        "harmless twins": [v for v, s in rows if not s.harmful and s.group == "pairs" and not s.wrapped],
        "harmless, wrapped": [v for v, s in rows if not s.harmful and s.wrapped],
    }
    for group in sorted({s.group for _, s in rows if not s.harmful and s.group != "pairs"}):
        groups[group] = [v for v, s in rows if s.group == group and not s.wrapped]
    groups["ordinary traffic"] = [v for v, s in rows if s.ordinary]
    return {name: values for name, values in groups.items() if values}


def rates(groups: Groups, benign: Groups) -> dict[str, Any]:
    """Open rates with exact 95 % intervals; and the AUROC of "harmful" against each benign traffic."""
    named = {**groups, **{YOURS + name: values for name, values in benign.items() if len(values)}}
    figures: dict[str, Any] = {
        "open": {
            name: asdict(clopper_pearson(sum(map(opens, values)), len(values)))
            for name, values in named.items()
        }
    }
    harmful = groups.get("harmful", ())
    areas = {
        name: asdict(bootstrap_auroc([*harmful, *values], [1] * len(harmful) + [0] * len(values), draws=500))
        for name, values in benign.items()
        if len(harmful) and len(values)
    }
    return {**figures, "auroc_benign": areas} if areas else figures
