"""The content of an aligner as HTML with the figures of its fit, for `inspect --html` and for reports."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferaligner.artifact import AlignerArtifact
from inferaligner.method.vectors import cosine
from inferaligner.reporting import figures
from inferaligner.reporting.html import interval, render
from inferaligner.reporting.search_figures import search_figures, setting
from inferaligner.statistics.intervals import Interval
from inferaligner.storage.model_card import gate_words, operating_point, percent
from inferaligner.storage.strength_search_record import (
    false_open_words,
    finalists,
    order_words,
    same_setting,
    span,
    strength_words,
)
from inferaligner.version import __version__

_DISTRIBUTIONS = ("harmful", "harmful, wrapped", "harmless twins", "ordinary traffic")


def artifact_page(artifact: AlignerArtifact) -> str:
    """One HTML page that loads nothing. Raises `MissingExtraError` without matplotlib."""
    provenance = artifact.provenance
    return render(
        "artifact.html",
        title=f"Aligner for {provenance.target.spec}",
        version=__version__,
        target=provenance.target.spec,
        aligned=provenance.guide,
        created=provenance.created,
        fit=aligner_sections(artifact),
        figures=aligner_figures(artifact),
    )


def aligner_sections(artifact: AlignerArtifact) -> dict[str, Any]:
    """Settings, open rates on held-out prompts and the strength search, for the template `fit.html`."""
    search = artifact.calibration.get("search") or {}
    return {
        "settings_rows": _settings_rows(artifact),
        "rate_rows": [
            (kind, percent(rate.value), interval(rate), rate.n)
            for kind, rate in _open_rates(artifact).items()
        ],
        "search": _search(search) if search else {},
    }


def aligner_figures(artifact: AlignerArtifact) -> dict[str, str]:
    """The figures of the template `fit.html` by name. Raises `MissingExtraError` without matplotlib."""
    search = artifact.calibration.get("search") or {}
    # A search whose figures were not finite when they were stored cannot be drawn.
    drawn = search_figures(search) if search and search["unsteered_cross_entropy"] is not None else {}
    rates = _open_rates(artifact)
    if rates:
        drawn["held-out-rates"] = figures.open_rates(rates, name="held-out-rates")
    stored = artifact.calibration.get("held_out_scores") or {}  # without the gate's bias
    scores = {
        kind: [score + artifact.gate.bias for score in stored[kind]]
        for kind in _DISTRIBUTIONS
        if kind in stored
    }
    harmless = {kind: scores[kind] for kind in _DISTRIBUTIONS[2:] if kind in scores}
    if scores:
        drawn["held-out-scores"] = figures.score_distributions(scores, name="held-out-scores")
    if harmless and "harmful" in scores:
        drawn["held-out-roc"] = figures.roc_curves(scores["harmful"], harmless, name="held-out-roc")
    if not artifact.gate_only:
        drawn["cosine"] = figures.cosine_by_layer(
            cosine(artifact.srv, artifact.ssv).tolist(),
            steered=artifact.steering.layers,
            gate=artifact.gate.layers,
        )
    return drawn


def _open_rates(artifact: AlignerArtifact) -> dict[str, Interval]:
    held_out = artifact.calibration.get("held_out") or {}
    return {kind: Interval(**rate) for kind, rate in (held_out.get("open") or {}).items()}


def _settings_rows(artifact: AlignerArtifact) -> list[tuple[str, str]]:
    provenance, steering = artifact.provenance, artifact.steering
    model, prompts = provenance.target.model, provenance.prompts
    unit = "the SSV" if steering.norm == "difference" else "the SSV of length one"
    alpha = strength_words(steering.strength, steering.profile)
    where = "the prompt's last token on" if steering.positions == "from_gate" else "the first token on"
    layers = f"layer{'s' * (len(steering.layers) > 1)} {span(steering.layers)}"
    steered = f"{layers}, {alpha} × {unit}, from {where}"
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    return [
        (
            "Target",
            f"{provenance.target.spec}: {model.architecture}, {model.depth} layers of width {model.width}",
        ),
        ("Aligned model", provenance.guide),
        ("Gate", gate_words(artifact.gate)),
        ("Operating point", operating_point(artifact.calibration)),
        ("Steering", "none: a gate alone" if artifact.gate_only else steered),
        (
            "Prompts",
            f"{prompts['source']}: {prompts['harmful']} harmful and {prompts['harmless']} harmless to fit on",
        ),
        ("Made", f"{provenance.created}; {versions}"),
    ]


def _search(search: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "settings": len(search["trials"]),
        "prompts": search["prompts"],
        "generated": search["generated"],
        "unsteered": _nats(search["unsteered_cross_entropy"]),
        "seconds": search.get("seconds"),
        "words": [words for words in (false_open_words(search), order_words(search)) if words],
        "rows": [
            (
                f"{number}: {setting(trial)}{' (chosen)' if same_setting(trial, search['chosen']) else ''}",
                _nats(trial["cross_entropy"]),
                *(percent(trial[name]) for name in ("refusal", "compliance", "gibberish")),
                _nats(trial.get("drift")),
                percent(trial.get("harmless_refusal")),
                percent(trial.get("harmless_gibberish")),
            )
            for number, trial in enumerate(finalists(search), 1)
        ],
    }


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
