"""The whole fit: activations, gate, vectors, steered layers and strength, held-out figures.

1. target activations of the labelled prompts -> gate, chosen by cross-validation; bias at the operating point
2. mean differences of the pairs' activations -> SRV (target), SSV (aligned model)
3. the aligned model's own answers -> layers and strength
4. where it is asked for, the target's answers -> the monitor
5. the test part of the prompts -> figures
"""

from __future__ import annotations

import datetime
import hashlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

from inferaligner.artifact import AlignerArtifact, Provenance
from inferaligner.errors import InputError
from inferaligner.fit.gate.choice import (
    build_gate,
    choose_gate,
    gate_layers,
    number_of_trials,
    out_of_fold,
    paper_gate,
)
from inferaligner.fit.gate.contrast_rule import contrast_traffic
from inferaligner.fit.gate.end_gate import fit_end_gate
from inferaligner.fit.gate.held_out import held_out_figures, held_out_groups
from inferaligner.fit.monitor.training import fit_monitor
from inferaligner.fit.operating_point.batch_shift import PROMPTS, batch_shift, batch_shift_figures
from inferaligner.fit.operating_point.benign_traffic import settle, stored, unseen
from inferaligner.fit.options import FitModel, FitOptions
from inferaligner.fit.progress import NullProgress, Stages
from inferaligner.fit.samples import Samples
from inferaligner.fit.search_prompts import Outcome
from inferaligner.fit.strength.choice import Steering, choose_steering
from inferaligner.fit.transfer.linear_map import FOLDS, TOO_MUCH_ALIKE, carry_over, needs_map
from inferaligner.method.activations import Activations, record_activations
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GuidanceGate
from inferaligner.method.steering_settings import SteeringSettings
from inferaligner.method.vectors import cosine, mean_difference
from inferaligner.models.anatomy import dissect
from inferaligner.models.number_format import format_words, number_format
from inferaligner.prompts.chat import context_length, encode_chats, template_suffix
from inferaligner.prompts.encoding import has_pictures
from inferaligner.prompts.images import Prompt
from inferaligner.version import __version__

NO_STEERING = SteeringSettings(layers=(), strength=0.0)
"""Of a gate alone."""


def fit_artifact(
    target: FitModel,
    aligned: FitModel | None,
    samples: Samples,
    *,
    benign: Mapping[str, Sequence[Prompt]],
    options: FitOptions,
    outcome: Outcome,
    stages: Stages | None = None,
) -> AlignerArtifact:
    """Fits an aligner. `benign` are the user's own prompts by name: never fitted on, and each kept below
    `max_false_open` (docs/calibration.md). `outcome` judges answers while the strength is searched. Without
    an aligned model the artifact is a gate alone."""
    tell: Stages = stages or NullProgress()
    _check(target, aligned, benign, options)
    if aligned is not None:
        _tell_of_formats(target, aligned, tell)
    records = target.record(), None if aligned is None else aligned.record()
    benign, left_out = unseen(benign, [sample.prompt for sample in samples.fitting])
    for name, count in left_out.items():
        if count:
            tell.note(f"{name}: {count} prompts left out, because the gate is fitted on them")
    # The vectors first: whether another family's can be carried over is known soon, and may end it here.
    srv, ssv, transfer = _vectors(target, aligned, samples, options, tell)
    gate, found, scores, end_gate = _fit_gate(target, samples, benign, options, tell)
    chosen = Steering(NO_STEERING)
    if aligned is not None:
        chosen = choose_steering(
            target, aligned, samples, gate, scores, ssv, options, outcome, tell, own=not transfer
        )
    calibration = {"paper": options.paper, **found, "transfer": transfer, **chosen.found()}
    monitor = None
    if options.monitor:
        monitor, calibration["monitor"] = fit_monitor(
            target, samples, gate, chosen.settings.layers, benign, options, tell
        )
    provenance = Provenance(
        target=records[0],
        aligned=records[1],
        prompts={**samples.described, "benign": {name: len(rows) for name, rows in benign.items()}},
        versions={
            "inferaligner": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            **number_format(target.model),
        },
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        system_prompt=options.system,
    )
    return AlignerArtifact(
        gate,
        chosen.settings,
        srv,
        ssv,
        provenance,
        calibration,
        monitor,
        learned=chosen.learned,
        end_gate=end_gate,
    )


# -- 1. the gate ---------------------------------------------------------------------------------------


def _fit_gate(
    target: FitModel,
    samples: Samples,
    benign: Mapping[str, Sequence[Prompt]],
    options: FitOptions,
    tell: Stages,
) -> tuple[GuidanceGate, dict[str, Any], list[float], EndGate | None]:
    """The gate, its figures, the held-out scores of `samples.fitting` at its operating point, and the gate of
    begun answers."""
    depth = dissect(target.model).depth
    suffix = len(template_suffix(target.tokenizer))
    # The last token, the one that closes the user's turn, and the next: the others add little to them.
    offsets = (0,) if options.paper else tuple(sorted({0, max(0, suffix - 2), suffix - 1}))
    if options.gate_layer is not None:
        layers: tuple[int, ...] = (options.gate_layer,)
    else:
        layers = tuple(range(depth)) if options.paper else gate_layers(depth)

    limit, ordinary_limit = options.limits(bool(benign))

    def record(texts: Sequence[Prompt], what: str) -> Activations:
        return _record(target, texts, options, tell, what, layers=layers, offsets=offsets)

    fitting = record([s.prompt for s in samples.fitting], "target: gate activations")
    if options.paper:
        pairs = [s for s in samples.fitting if s.group == "pairs" and not s.wrapped]
        rows = [row for row, s in enumerate(samples.fitting) if s.group == "pairs" and not s.wrapped]
        gate, table = paper_gate(fitting.take(rows), pairs, options.gate_layer), list[dict[str, object]]()
        contrast: dict[str, list[float]] = {}
        held_out: list[float] = []
    else:
        with tell.stage("gates compared", number_of_trials(fitting, options.gate_layer)) as advance:
            chosen, tried = choose_gate(
                fitting,
                samples.fitting,
                max_false_open=ordinary_limit,
                layer=options.gate_layer,
                advance=advance,
            )
        gate = build_gate(chosen, fitting, samples.fitting)
        table = [trial.row() for trial in tried]
        held_out = out_of_fold(chosen, samples.fitting)
        contrast = contrast_traffic(held_out, samples.fitting)
    del fitting

    def score(texts: Sequence[Prompt], what: str) -> list[float]:
        recorded = record(texts, what)
        return [float(s) for s in gate.scores(recorded.values, recorded.layers, recorded.offsets)]

    own = {name: score(prompts, f"benign: {name}") for name, prompts in benign.items()}
    before, shift = gate.bias, _batch_shift(target, samples, gate, options)
    gate, point, own = settle(
        gate,
        contrast,
        own,
        max_false_open=limit if benign else ordinary_limit,
        ordinary_limit=ordinary_limit,
        confidence=options.confidence,
        # Its bias is the paper's, unless a limit for the user's own traffic was given with it.
        paper=options.paper and (options.max_false_open is None or not benign),
        rule=options.contrast_rule,
        allowance=shift or 0.0,
    )
    tested = score([s.prompt for s in samples.test], "held-out prompts") if samples.test else []
    groups = held_out_groups(tested, samples.test)
    figures = {
        "max_false_open": point.max_false_open,
        "gates": table,
        "operating_point": stored(point),
        "held_out": held_out_figures(tested, samples.test, own),
        # Without the bias, so that the open rates can be told again at another operating point.
        "held_out_scores": {n: [float(f"{v - gate.bias:.7g}") for v in vs] for n, vs in groups.items()},
    }
    if shift is not None:
        pooled = next(iter(contrast.values()), [])
        figures["batch_shift"] = batch_shift_figures(shift, [score + gate.bias - before for score in pooled])
    end_gate: EndGate | None = None
    if not options.paper:
        end_gate, figures["ends"] = fit_end_gate(
            gate,
            target.tokenizer,
            samples.fitting,
            samples.test,
            lambda ids, what: _record_ids(target, ids, tell, what, layers=gate.layers, offsets=(0,)),
            max_false_open=ordinary_limit,
            system=options.system,
            limit=context_length(target.model.config),
        )
    return gate, figures, [value + gate.bias - before for value in held_out], end_gate


def _batch_shift(target: FitModel, samples: Samples, gate: GuidanceGate, options: FitOptions) -> float | None:
    """How far scores move with the batch; None without a text, or where an engine makes the scores."""
    if target.recorder is not None:
        return None
    texts = [s.text for s in samples.fitting if not s.harmful and not s.wrapped and s.shown is None]
    if not texts:
        return None
    texts.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
    return batch_shift(
        target.model, encode_chats(target.tokenizer, texts[:PROMPTS], system=options.system), gate
    )


# -- 2. the vectors ------------------------------------------------------------------------------------


def _vectors(
    target: FitModel, aligned: FitModel | None, samples: Samples, options: FitOptions, tell: Stages
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """SRV, SSV, and how the SSV was carried over from a model of another shape (or nothing)."""
    harmful, harmless = samples.for_vectors()
    rows = [*harmful, *harmless]
    used = [samples.fitting[row] for row in rows]

    def record(side: FitModel, name: str, asked: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        values = _record(side, asked, options, tell, name).at(0)
        return values, mean_difference(values[: len(harmful)], values[len(harmful) :])

    ours, srv = record(target, "target: SRV", [sample.prompt for sample in used])
    if aligned is None:
        return srv, torch.zeros_like(srv), {}
    theirs, ssv = record(aligned, "aligned model: SSV", [sample.text for sample in used])
    if not needs_map(target.model, aligned.model):
        return srv, ssv, {}
    with tell.stage("map from the aligned model", theirs.shape[1]) as advance:
        carried = carry_over(
            ssv,
            theirs,
            ours,
            [sample.sort for sample in used],
            [sample.fold(FOLDS) for sample in used],
            match=options.match_layers,
            kind=options.map_kind,
            advance=advance,
        )
    mapped = options.carry == "map" or options.paper
    if mapped and not options.accept_poor_map:
        carried.check(target.spec, aligned.spec)
    alike = float(cosine(srv, carried.ssv)[carried.upper].mean())
    tell.note(
        f"the map explains {carried.explained:.0%} of held-out variance; what it carried over has a cosine "
        f"of {alike:.2f} with the target's own vectors"
        + (", so expect little more of it than of those" if mapped and alike > TOO_MUCH_ALIKE else "")
    )
    return srv, carried.ssv, {**carried.table(), "cosine_srv": alike}


def _tell_of_formats(target: FitModel, aligned: FitModel, tell: Stages) -> None:
    ours, theirs = number_format(target.model), number_format(aligned.model)
    if ours != theirs:
        tell.note(
            f"the target is in {format_words(ours)}, the aligned model in {format_words(theirs)}: gate and "
            "strength are fitted to the target as it is here, so load it as it will be served"
        )


# -- shared --------------------------------------------------------------------------------------------


def _record(
    side: FitModel, texts: Sequence[Prompt], options: FitOptions, tell: Stages, what: str, **places: Any
) -> Activations:
    ids = encode_chats(
        side.tokenizer, texts, system=options.system, max_length=context_length(side.model.config)
    )
    return _record_ids(side, ids, tell, what, **places)


def _record_ids(
    side: FitModel, ids: Sequence[Sequence[int]], tell: Stages, what: str, **places: Any
) -> Activations:
    with tell.stage(what, len(ids)) as advance:
        if side.recorder is not None:
            if any(map(has_pictures, ids)):
                raise InputError(
                    "Prompts with pictures cannot be recorded by an engine that serves the target; fit with "
                    "--engine transformers, or without pictures."
                )
            return side.recorder(ids, advance=advance, **places)
        # Half of all tokens are the template's beginning or a wrapper's, which many prompts share.
        return record_activations(side.model, ids, share_prefixes=True, advance=advance, **places)


def _check(
    target: FitModel, aligned: FitModel | None, benign: Mapping[str, Sequence[Prompt]], options: FitOptions
) -> None:
    ours = dissect(target.model)
    if options.paper and options.max_false_open is not None and not benign:
        raise InputError(
            "--max-false-open was given with --paper and without --benign: the paper's bias is the mean "
            "projection of the extraction prompts, which leaves no ordinary prompts to keep below a limit. "
            "Give your own with --benign FILE, or leave --max-false-open out."
        )
    if options.paper and options.carry == "answers":
        raise InputError(
            "--carry answers was given with --paper, and the paper adds the aligned model's own vectors. "
            "Leave one of the two out."
        )
    if aligned is None and options.steers:
        raise InputError(
            "Steered layers, strength or positions were given without an aligned model to take vectors "
            "from. Name one with --aligned, or leave them out for a gate alone."
        )
    if aligned is None and options.monitor:
        raise InputError(
            "A monitor was asked for without an aligned model: it steers answers that turn harmful, and a "
            "gate alone has nothing to steer with. Name a model with --aligned, or leave --monitor out."
        )
    asked = [*(options.steer_layers or ()), *([options.gate_layer] if options.gate_layer is not None else [])]
    outside = [layer for layer in asked if not 0 <= layer < ours.depth]
    if outside:
        raise InputError(f"Layers {outside} do not exist: the model has layers 0 to {ours.depth - 1}.")
