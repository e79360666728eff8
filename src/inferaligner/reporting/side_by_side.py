"""The report of a side-by-side evaluation: an aligner, what it did to the answers, and how it was made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from inferaligner.artifact import AlignerArtifact
from inferaligner.evaluation.side_by_side import Row, Suite, outcome_counts
from inferaligner.method.vectors import cosine
from inferaligner.reporting import figures
from inferaligner.reporting.examples import examples
from inferaligner.reporting.html import interval, render, unspaced
from inferaligner.reporting.search_figures import search_figures, span
from inferaligner.reporting.verdict import GoNoGo, refusals, spread, verdict
from inferaligner.reporting.verdict import percent as whole_percent
from inferaligner.statistics.intervals import Interval, clopper_pearson
from inferaligner.storage.model_card import gate_words, operating_point, percent
from inferaligner.storage.search_record import false_open_words, order_words, strength_words
from inferaligner.version import __version__

LABELS: dict[str, str] = {
    "bare": "bare model",
    "inferaligner": "with InferAligner",
    "own vectors": "target's own vectors",
}
"""The methods as a reader should know them."""

_DISTRIBUTIONS = ("harmful", "harmful, wrapped", "harmless twins", "ordinary traffic")


@dataclass(frozen=True)
class SideBySide:
    """Everything that the report is about."""

    artifact: AlignerArtifact
    rows: Sequence[Row]
    judge: str
    agreement: str
    max_new_tokens: int
    created: str
    seconds: Mapping[str, float]  # by stage

    @property
    def held_out(self) -> dict[str, Any]:
        """Open rates and AUROC on the test part, as the fit measured them."""
        figures: dict[str, Any] = self.artifact.calibration["held_out"]
        return figures


def report(run: SideBySide) -> str:
    """The report as one HTML page. Answers to harmful prompts are in it only where the model declined."""
    artifact, calibration = run.artifact, run.artifact.calibration
    told, held_out, search = verdict(run.rows), run.held_out, calibration.get("search") or {}
    rates = {kind: Interval(**rate) for kind, rate in held_out["open"].items()}
    return render(
        "side_by_side.html",
        title=f"InferAligner on {artifact.provenance.target.spec}",
        version=__version__,
        verdict=told,
        target=artifact.provenance.target.spec,
        aligned=artifact.provenance.guide,
        created=run.created,
        tiles=_tiles(run.rows, told, held_out),
        examples=examples(run.rows),
        labels=LABELS,
        max_new_tokens=run.max_new_tokens,
        judge=run.judge,
        agreement=run.agreement,
        outcome_rows=_outcome_rows(run.rows),
        declined_rows=_declined_rows(run.rows),
        max_false_open=calibration["max_false_open"],
        rate_rows=[(kind, percent(rate.value), interval(rate), rate.n) for kind, rate in rates.items()],
        search=_search_numbers(search),
        settings_rows=settings_rows(artifact),
        total_seconds=f"{sum(run.seconds.values()):.0f}",
        timing_rows=[(stage, f"{seconds:.1f}") for stage, seconds in run.seconds.items()],
        figures=_figures(run, rates, search),
    )


def settings_rows(artifact: AlignerArtifact) -> list[tuple[str, str]]:
    """An aligner's settings in words, for a table."""
    provenance, steering = artifact.provenance, artifact.steering
    model, prompts = provenance.target.model, provenance.prompts
    unit = "the SSV" if steering.norm == "difference" else "the SSV of length one"
    alpha = strength_words(steering.strength, steering.profile)
    where = "the prompt's last token on" if steering.positions == "from_gate" else "the first token on"
    told = f"{_block(steering.layers)}, {alpha} × {unit}, from {where}"
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    return [
        (
            "Target",
            f"{provenance.target.spec}: {model.architecture}, {model.depth} layers of width {model.width}",
        ),
        ("Aligned model", provenance.guide),
        ("Gate", gate_words(artifact.gate)),
        ("Operating point", operating_point(artifact.calibration)),
        ("Steering", "none: a gate alone" if artifact.gate_only else told),
        (
            "Prompts",
            f"{prompts['source']}: {prompts['harmful']} harmful and {prompts['harmless']} harmless to fit on",
        ),
        ("Made", f"{provenance.created}; {versions}"),
    ]


def _tiles(rows: Sequence[Row], told: GoNoGo, held_out: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    tiles = []
    suites: list[tuple[Suite, str]] = [
        ("harmful", "of harmful requests declined"),
        ("harmful, wrapped", "of wrapped harmful requests declined"),
    ]
    for suite, what in suites:
        ours = refusals(rows, suite, "inferaligner")
        if ours.n:
            bare = whole_percent(refusals(rows, suite, "bare"))
            tiles.append((whole_percent(ours), f"instead of {bare}", what))
    what = "of harmless answers are exactly the bare model's"
    tiles.append((whole_percent(told.harmless_untouched), "", what))
    if held_out.get("auroc"):
        tiles.append(
            (
                f"{held_out['auroc']['value']:.3f}",
                "AUROC",
                "of the gate, harmful against every harmless prompt",
            )
        )
    return tiles


def _outcome_rows(rows: Sequence[Row]) -> list[tuple[str, str, str, int, str, str]]:
    found = []
    for suite, methods in outcome_counts(rows).items():
        for method, counts in methods.items():
            total = sum(counts.values())
            for outcome, count in counts.items():
                rate = clopper_pearson(count, total)
                found.append((suite, LABELS[method], outcome, count, percent(rate.value), interval(rate)))
    return found


def _declined_rows(rows: Sequence[Row]) -> list[list[str]]:
    """A row per suite, a column per method: the share that was declined, and under it the interval."""
    found = []
    for suite, methods in outcome_counts(rows).items():
        shares = [clopper_pearson(counts["refusal"], sum(counts.values())) for counts in methods.values()]
        found.append([suite, *(f"{whole_percent(share)}\n{unspaced(spread(share))}" for share in shares)])
    return found


def _search_numbers(search: Mapping[str, Any]) -> dict[str, Any]:
    if not search:
        return {}
    return {
        "settings": len(search["trials"]),
        "prompts": search["prompts"],
        "generated": search["generated"],
        "unsteered": f"{search['unsteered_cross_entropy']:.2f}",
        "words": [told for told in (false_open_words(search), order_words(search)) if told],
    }


def _figures(run: SideBySide, rates: Mapping[str, Interval], search: Mapping[str, Any]) -> dict[str, str]:
    kinds = _scores_by_kind(run)
    shown = {kind: kinds[kind] for kind in _DISTRIBUTIONS if kind in kinds}
    harmless = {kind: shown[kind] for kind in _DISTRIBUTIONS[2:] if kind in shown}
    counts = {
        f"{suite} (n = {sum(methods['bare'].values())})": {
            LABELS[method]: found for method, found in methods.items()
        }
        for suite, methods in outcome_counts(run.rows).items()
    }
    drawn = {
        "outcomes": figures.outcome_bars(counts),
        "scores": figures.score_distributions(shown),
        "roc": figures.roc_curves(kinds["harmful"], harmless),
        "rates": figures.open_rates(rates),
        "cosine": figures.cosine_by_layer(
            cosine(run.artifact.srv, run.artifact.ssv).tolist(),
            steered=run.artifact.steering.layers,
            gate=run.artifact.gate.layers,
        ),
    }
    return {**drawn, **(search_figures(search) if search else {})}


def _scores_by_kind(run: SideBySide) -> dict[str, list[float]]:
    kept: Mapping[str, Sequence[float]] = run.artifact.calibration["held_out_scores"]  # without the bias
    return {kind: [score + run.artifact.gate.bias for score in scores] for kind, scores in kept.items()}


def _block(layers: Sequence[int]) -> str:
    return f"layer{'s' * (len(layers) > 1)} {span(layers)}"
