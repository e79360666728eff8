"""The whole fit: vectors, gate, steered layers and strength, monitor, held-out figures.

1. mean differences of the labelled prompts' activations -> SRV (target), SSV (aligned model): `vectors.py`
2. target activations of the labelled prompts -> gate, its bias at the operating point: `gate/`
3. the aligned model's own answers -> layers and strength: `strength/`, `transfer/`
4. with `monitor`, the target's answers -> the monitor: `monitor/`

The test part of the prompts takes part in none of these; each step reports its figures on it.
"""

from __future__ import annotations

import datetime
import platform
from dataclasses import replace

import torch
import transformers

from inferaligner.artifact import AlignerArtifact, ModelRecord, Provenance
from inferaligner.errors import InputError
from inferaligner.fit.context import FitContext
from inferaligner.fit.gate.fitting import fit_gate
from inferaligner.fit.monitor.monitor_fit import fit_monitor
from inferaligner.fit.operating_point.benign_traffic import unseen
from inferaligner.fit.options import check_given
from inferaligner.fit.strength.steering_choice import Steering, choose_steering
from inferaligner.fit.transfer.linear_map import needs_map
from inferaligner.fit.vectors import extract_vectors
from inferaligner.method.steering_settings import SteeringSettings
from inferaligner.models.anatomy import dissect
from inferaligner.models.number_format import format_words, number_format
from inferaligner.version import __version__

_GATE_ALONE = Steering(SteeringSettings(layers=(), strength=0.0))


def fit_artifact(context: FitContext) -> AlignerArtifact:
    """Fits an aligner, or a gate alone where the context has no aligned model.

    Raises:
        CalibrationError: the models do not fit each other, or the data allow no choice.
        InputError: an unusable prompt, or options that exclude each other.
    """
    _check(context)
    _report_formats(context)
    target, aligned = context.target.record(), None if context.aligned is None else context.aligned.record()
    context = _without_fitted_prompts(context)
    # The vectors first: a map from another family that explains too little ends the fit soon.
    vectors = extract_vectors(context)
    gate = fit_gate(context)
    steering = _GATE_ALONE if aligned is None else choose_steering(context, gate, vectors)
    calibration = {
        "paper": context.options.paper,
        **gate.figures,
        "transfer": vectors.transfer,
        **steering.figures(),
    }
    monitor = None
    if context.options.monitor:
        layers = steering.settings.layers
        monitor, calibration["monitor"] = fit_monitor(context, gate.gate, layers)
    return AlignerArtifact(
        gate.gate,
        steering.settings,
        vectors.srv,
        vectors.ssv,
        _provenance(context, target, aligned),
        calibration,
        monitor,
        learned=steering.learned,
        end_gate=gate.end_gate,
    )


def _check(context: FitContext) -> None:
    options = context.options
    check_given(options.changed(), aligned=context.aligned is not None)
    if options.paper and options.max_false_open is not None and not context.benign:
        raise InputError(
            "`max_false_open` was given with `paper` and without `benign`: the paper's bias is the mean "
            "projection of the extraction prompts, which leaves no ordinary prompts to keep below a limit. "
            "Give your own with `benign`, or leave `max_false_open` out."
        )
    if options.paper and options.carry == "answers":
        raise InputError(
            '`carry="answers"` was given with `paper`, and the paper adds the aligned model\'s own vectors. '
            "Leave one of the two out."
        )
    aligned = context.aligned
    if aligned is not None and options.carry == "vectors" and needs_map(context.target.model, aligned.model):
        raise InputError(
            f'`carry="vectors"` was given, but {aligned.spec} differs from {context.target.spec} in width or '
            "depth, so its vectors do not fit. Use another `carry`, or leave it out."
        )
    depth = dissect(context.target.model).depth
    layers = [*(options.steer_layers or ()), *([] if options.gate_layer is None else [options.gate_layer])]
    outside = [layer for layer in layers if not 0 <= layer < depth]
    if outside:
        raise InputError(f"Layers {outside} do not exist: the model has layers 0 to {depth - 1}.")


def _report_formats(context: FitContext) -> None:
    if context.aligned is None:
        return
    of_target, of_aligned = number_format(context.target.model), number_format(context.aligned.model)
    if of_target != of_aligned:
        context.progress.note(
            f"the target is in {format_words(of_target)}, the aligned model in {format_words(of_aligned)}: "
            "gate and strength are fitted to the target as it is here, so load it as it will be served"
        )


def _without_fitted_prompts(context: FitContext) -> FitContext:
    """The same with only those benign prompts that the gate is not fitted on."""
    kept, left_out = unseen(context.benign, [sample.prompt for sample in context.samples.fitting])
    for name, count in left_out.items():
        if count:
            context.progress.note(f"{name}: {count} prompts left out, because the gate is fitted on them")
    return replace(context, benign=kept)


def _provenance(context: FitContext, target: ModelRecord, aligned: ModelRecord | None) -> Provenance:
    return Provenance(
        target=target,
        aligned=aligned,
        prompts={
            **context.samples.described,
            "benign": {name: len(prompts) for name, prompts in context.benign.items()},
        },
        versions={
            "inferaligner": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
            **number_format(context.target.model),
        },
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        system_prompt=context.options.system,
    )
