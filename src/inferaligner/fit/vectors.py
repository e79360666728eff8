"""The steering vectors: SRV of the target, SSV of the aligned model, carried over where shapes differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inferaligner.fit.context import FitContext, FitModel
from inferaligner.fit.recording import record_prompts
from inferaligner.fit.transfer.linear_map import FOLDS, TOO_MUCH_ALIKE, carry_over, needs_map
from inferaligner.method.vectors import cosine, mean_difference
from inferaligner.prompts.images import Prompt


@dataclass(frozen=True)
class ExtractedVectors:
    """SRV and SSV in the target's space, float32 `[layers, width]`.

    `transfer` describes the map from an aligned model of another shape; empty without one.
    """

    srv: Tensor
    ssv: Tensor
    transfer: dict[str, Any] = field(default_factory=dict)


def extract_vectors(context: FitContext) -> ExtractedVectors:
    """Mean differences of the harmful and harmless prompts' activations. Without an aligned model, SSV is 0.

    Raises:
        CalibrationError: the map from another shape explains too little, and that was not accepted.
    """
    target, aligned, options = context.target, context.aligned, context.options
    harmful, harmless = context.samples.for_vectors()
    used = [context.samples.fitting[row] for row in (*harmful, *harmless)]

    def record(model: FitModel, stage: str, prompts: Sequence[Prompt]) -> tuple[Tensor, Tensor]:
        values = record_prompts(context, model, prompts, stage).at(0)
        return values, mean_difference(values[: len(harmful)], values[len(harmful) :])

    of_target, srv = record(target, "target: SRV", [sample.prompt for sample in used])
    if aligned is None:
        return ExtractedVectors(srv, torch.zeros_like(srv))
    of_aligned, ssv = record(aligned, "aligned model: SSV", [sample.text for sample in used])
    if not needs_map(target.model, aligned.model):
        return ExtractedVectors(srv, ssv)
    with context.progress.stage("map from the aligned model", of_aligned.shape[1]) as advance:
        carried = carry_over(
            ssv,
            of_aligned,
            of_target,
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
    context.progress.note(
        f"the map explains {carried.explained:.0%} of held-out variance; the vectors it carried over have a "
        f"cosine of {alike:.2f} with the target's own vectors"
        + (", so expect little more from them than from those" if mapped and alike > TOO_MUCH_ALIKE else "")
    )
    return ExtractedVectors(srv, carried.ssv, {**carried.table(), "cosine_srv": alike})
