"""`inferaligner calibrate DIR`: move an aligner's operating point, or measure the drift of live traffic."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from inferaligner.cli.model_options import AsJson, ModelOptions
from inferaligner.cli.option_groups import flag
from inferaligner.cli.progress import RichStages
from inferaligner.cli.terminal import note, print_json, results, warn
from inferaligner.cli.traffic_options import by_name, read_benign, warn_of_too_few
from inferaligner.errors import InputError
from inferaligner.fit.options import CONFIDENCE, OWN_LIMIT, check_share
from inferaligner.prompts.images import Prompt

if TYPE_CHECKING:
    from inferaligner.artifact import AlignerArtifact
    from inferaligner.storage.operating_point_record import Source


@dataclass(frozen=True)
class TrafficOptions:
    """The prompts or scores that are calibrated for."""

    panel: ClassVar = "Benign traffic"

    benign: list[str] | None = flag(
        None, metavar="[NAME=]SPEC", help="Benign prompts, scored now by the target. May be repeated."
    )
    scores: list[str] | None = flag(
        None,
        metavar="[NAME=]FILE",
        help="Scores of benign prompts made with this aligner: JSON lines with a field score, as "
        "`inferaligner score` writes them. May be repeated.",
    )
    target: str | None = flag(
        None,
        metavar="TARGET",
        help="The model that scores the prompts; by default the model that the aligner was fitted on, under "
        "its name at that time.",
    )
    scored_bias: float | None = flag(
        None,
        metavar="BIAS",
        help="The gate's bias when --scores were made; needed if the bias was moved since. A row's own "
        "field bias wins.",
    )


@dataclass(frozen=True)
class PromiseOptions:
    """The bound that is promised for each traffic."""

    panel: ClassVar = "Promise"

    max_false_open: float | None = flag(
        None,
        metavar="SHARE",
        help="At most this share of each traffic opens the gate; by default the aligner's own limit, or "
        f"{OWN_LIMIT:g}.",
    )
    confidence: float | None = flag(
        None,
        metavar="SHARE",
        help="Confidence level of the bound --max-false-open, for each traffic; by default the "
        f"aligner's own, or {CONFIDENCE:g}.",
    )


def calibrate(
    *,
    place: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that `fit` wrote.")],
    live: TrafficOptions,
    promise: PromiseOptions,
    drift: Annotated[
        bool, typer.Option("--drift", help="Compare with the stored calibration scores; change nothing.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")
    ] = False,
    model: ModelOptions,
    as_json: AsJson = False,
) -> None:
    """Set the operating point of an aligner again, for the given benign traffic alone: the gate's bias
    moves, its weights and the vectors stay. With --drift, compare live traffic with that of the calibration.
    """
    if promise.max_false_open is not None:
        check_share("max_false_open", promise.max_false_open)
    if promise.confidence is not None:
        check_share("confidence", promise.confidence)
    if not live.benign and not live.scores:
        raise InputError("There is no traffic: give prompts with --benign FILE or scores with --scores FILE.")
    if drift and (promise.max_false_open is not None or promise.confidence is not None):
        raise InputError(
            "--drift compares with the aligner's own limit; leave out --max-false-open and --confidence."
        )
    if live.scored_bias is not None and (not live.scores or not math.isfinite(live.scored_bias)):
        raise InputError(f"--scored-bias {live.scored_bias} goes with --scores FILE, and is a finite number.")
    files, named = by_name(live.scores or [], "--scores"), by_name(live.benign or [], "--benign")
    for name in files:
        if name in named:
            raise InputError(f"--benign and --scores both name {name!r}; give one of them another name.")
    prompts = read_benign(live.benign or [])

    from inferaligner.artifact import AlignerArtifact
    from inferaligner.fit.operating_point.recalibrate import promise_asked

    artifact = AlignerArtifact.read(place)
    traffic = _stored(artifact, {name: spec for name, (spec, _) in files.items()}, live.scored_bias)
    limit, sure = promise_asked(artifact, promise.max_false_open, promise.confidence)
    if not drift:
        warn_of_too_few({**prompts, **traffic}, limit, sure)
    if prompts:
        traffic = {**_scored(artifact, prompts, live.target, model), **traffic}
    if drift:
        given = {name for name, (_, was_given) in {**files, **named}.items() if was_given}
        _show_drift(artifact, place, traffic, given, sure, as_json)
        return

    from inferaligner.fit.operating_point.recalibrate import recalibrate

    source: Source = "prompts and scores" if prompts and files else "prompts" if prompts else "scores"
    moved = recalibrate(artifact, traffic, max_false_open=limit, confidence=sure, source=source)
    _show_move(artifact, moved, place, not dry_run, as_json)


def _stored(
    artifact: AlignerArtifact, files: dict[str, str], scored_bias: float | None
) -> dict[str, list[float]]:
    from inferaligner.fit.operating_point.stored_scores import check_age, read_scores

    point = artifact.operating_point
    if scored_bias is None and point is not None:
        since = point.history[-1].date if point.history else artifact.provenance.created
        for file in files.values():
            check_age(file, since)
    return {name: read_scores(file, artifact.gate.bias, scored_bias) for name, file in files.items()}


def _scored(
    artifact: AlignerArtifact, prompts: dict[str, list[Prompt]], target: str | None, options: ModelOptions
) -> dict[str, list[float]]:
    from inferaligner.aligner import Aligner
    from inferaligner.fit.operating_point.benign_traffic import unseen

    aligner = Aligner(artifact)
    kept, left_out = unseen(prompts, aligner.fitted_prompts())
    for name, count in left_out.items():
        if count:
            note(f"{name}: {count} prompts left out, because the gate was fitted on them")
    spec = artifact.provenance.target.spec if target is None else target
    loaded = options.load_for(aligner, spec)
    scores = {}
    for name, texts in kept.items():
        with RichStages().stage(f"scoring {name}", len(texts)) as advance:
            decisions = aligner.score(loaded.model, loaded.reader, texts, advance=advance)
        scores[name] = [decision.score for decision in decisions]
    return scores


def _show_move(
    before: AlignerArtifact, after: AlignerArtifact, place: Path, write: bool, as_json: bool
) -> None:
    from inferaligner.cli.operating_point_view import move_tables, point_as_json
    from inferaligner.storage.model_card import model_card

    if write:
        after.update(place, model_card(after))
    if as_json:
        print_json(
            {
                "aligner": str(place),
                "written": write,
                "old_bias": before.gate.bias,
                "new_bias": after.gate.bias,
                "operating_point": point_as_json(after),
                "held_out": after.calibration["held_out"],
                "digest": after.digest(),
            }
        )
        return
    for table in move_tables(before, after):
        results().print(table)
    ordinary = (after.calibration["held_out"].get("open") or {}).get("ordinary traffic")
    if ordinary and after.gate.bias > before.gate.bias and ordinary["low"] > _limit(after):
        warn(
            f"The gate now opens on {ordinary['value']:.1%} of ordinary prompts of other kinds. "
            "If any of those are served, name them with --benign as well."
        )
    if not after.calibration.get("held_out_scores"):
        note("This aligner keeps no held-out scores: its rate on harmful prompts at the new bias is unknown.")
    note(f"Written to {place}." if write else f"Nothing was written to {place}: --dry-run.")


def _limit(artifact: AlignerArtifact) -> float:
    return float(artifact.calibration["max_false_open"])


def _show_drift(
    artifact: AlignerArtifact,
    place: Path,
    traffic: dict[str, list[float]],
    given: set[str],
    confidence: float,
    as_json: bool,
) -> None:
    from inferaligner.cli.operating_point_view import drift_table
    from inferaligner.fit.operating_point.drift import drift_of

    drifts = [
        drift_of(artifact, name, values, against=name if name in given else None)
        for name, values in traffic.items()
    ]
    if as_json:
        print_json({"aligner": str(place), "drift": [asdict(drift) for drift in drifts]})
        return
    results().print(drift_table(drifts, confidence))
    for drift in drifts:
        (warn if drift.exceeded or drift.shifted else note)(f"{drift.name}: {drift.verdict}")
