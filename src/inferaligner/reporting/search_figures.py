"""The figures of a strength search, drawn from its record in the artifact."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferaligner.reporting import figures
from inferaligner.storage.strength_search_record import finalists, same_setting, span


def search_figures(search: Mapping[str, Any]) -> dict[str, str]:
    """`surface` and `finalists` (numbered alike), and `false-opens` where harmless prompts were answered."""
    trials = finalists(search)
    names = [f"{number}: {setting(trial)}" for number, trial in enumerate(trials, 1)]
    marked = 0 if trials and same_setting(trials[0], search["chosen"]) else None
    drawn = {
        "surface": figures.strength_surface(
            points(search),
            unsteered=search["unsteered_cross_entropy"],
            chosen=None if marked is None else 1,
            gate=search.get("gate_layer"),
        ),
        "finalists": figures.finalists(
            [(name, _shares(trial, "")) for name, trial in zip(names, trials, strict=True)], chosen=marked
        ),
    }
    answered = [(n, t) for n, t in zip(names, trials, strict=True) if t.get("harmless_refusal") is not None]
    if answered:
        bare = search.get("harmless_unsteered")
        bars = [(name, _shares(trial, "harmless_")) for name, trial in answered]
        drawn["false-opens"] = figures.finalists(
            [*([("not steered", bare)] if bare else []), *bars],
            chosen=None if marked is None else marked + bool(bare),
            name="false-opens",
        )
    return drawn


def points(search: Mapping[str, Any]) -> list[figures.Point]:
    """Every setting that was scored, including settings below the gate."""
    trials = finalists(search)
    scored = [
        trial
        for trial in [*search["trials"], *(search.get("below_gate") or [])]
        if trial["cross_entropy"] is not None
    ]
    return [
        figures.Point(
            trial["layers"],
            trial["strength"],
            trial["cross_entropy"],
            bool(trial.get("profile")),
            next((number for number, one in enumerate(trials, 1) if same_setting(one, trial)), None),
        )
        for trial in scored
    ]


def setting(trial: Mapping[str, Any]) -> str:
    """Layers and strength in a few characters."""
    return f"{span(trial['layers'])} × {trial['strength']:.3g}{' per layer' if trial.get('profile') else ''}"


def _shares(trial: Mapping[str, Any], prefix: str) -> dict[str, float]:
    return {name: trial[prefix + name] or 0.0 for name in ("refusal", "compliance", "gibberish")}
