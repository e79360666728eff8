"""What is in an aligner, as one HTML page with the figures of its fit: `inferaligner inspect --html`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from inferaligner.artifact import AlignerArtifact
from inferaligner.method.vectors import cosine
from inferaligner.reporting import figures
from inferaligner.reporting.html import interval, render
from inferaligner.reporting.search_figures import search_figures, setting
from inferaligner.reporting.side_by_side import settings_rows
from inferaligner.statistics.intervals import Interval
from inferaligner.storage.model_card import percent
from inferaligner.storage.search_record import false_open_words, finalists, order_words, same_setting
from inferaligner.version import __version__

_DISTRIBUTIONS = ("harmful", "harmful, wrapped", "harmless twins", "ordinary traffic")


def artifact_page(artifact: AlignerArtifact) -> str:
    """One page, nothing loaded from anywhere. Raises `MissingExtraError` without matplotlib."""
    calibration = artifact.calibration
    held_out, search = calibration.get("held_out") or {}, calibration.get("search") or {}
    # A search whose figures were not finite when they were kept has nothing to draw.
    drawable = bool(search) and search["unsteered_cross_entropy"] is not None
    rates = {kind: Interval(**rate) for kind, rate in (held_out.get("open") or {}).items()}
    return render(
        "artifact.html",
        title=f"Aligner for {artifact.provenance.target.spec}",
        version=__version__,
        target=artifact.provenance.target.spec,
        aligned=artifact.provenance.guide,
        created=artifact.provenance.created,
        settings_rows=settings_rows(artifact),
        rate_rows=[(kind, percent(rate.value), interval(rate), rate.n) for kind, rate in rates.items()],
        search=_search(search) if search else {},
        figures=_figures(artifact, rates, search if drawable else {}),
    )


def _search(search: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "settings": len(search["trials"]),
        "prompts": search["prompts"],
        "generated": search["generated"],
        "unsteered": _nats(search["unsteered_cross_entropy"]),
        "seconds": search.get("seconds"),
        "words": [told for told in (false_open_words(search), order_words(search)) if told],
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


def _figures(
    artifact: AlignerArtifact, rates: Mapping[str, Interval], search: Mapping[str, Any]
) -> dict[str, str]:
    drawn = search_figures(search) if search else {}
    if rates:
        drawn["rates"] = figures.open_rates(rates)
    scores = {
        kind: [score + artifact.gate.bias for score in values]
        for kind, values in (artifact.calibration.get("held_out_scores") or {}).items()
        if kind in _DISTRIBUTIONS
    }
    if scores:
        drawn["scores"] = figures.score_distributions({kind: scores[kind] for kind in sorted(scores)})
    if not artifact.gate_only:
        drawn["cosine"] = figures.cosine_by_layer(
            cosine(artifact.srv, artifact.ssv).tolist(),
            steered=artifact.steering.layers,
            gate=artifact.gate.layers,
        )
    return drawn


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
