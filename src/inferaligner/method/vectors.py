"""SRV and SSV: mean differences of last-token activations (equations 1 and 2 of the paper).

    v'_l = mean(a_l(harmful)) - mean(a_l(harmless)),    v_l = v'_l / ||v'_l||

From the target model's activations this is the safety related vector (SRV) s_l, from the aligned model's
the safety steering vector (SSV) θ_l. Both are kept un-normalised, because the length of the difference
is the natural unit of the intervention strength; `unit` gives the paper's form.
"""

from __future__ import annotations

import torch
from torch import Tensor

from inferaligner.errors import CalibrationError


def mean_difference(harmful: Tensor, harmless: Tensor) -> Tensor:
    """v'_l for every layer, float32 `[layers, width]`, from activations `[prompts, layers, width]`.

    The means are taken in float64: bfloat16 activations of a few hundred prompts would lose the small
    components otherwise.
    """
    for name, activations in (("harmful", harmful), ("harmless", harmless)):
        if activations.ndim != 3 or activations.shape[0] == 0:
            raise CalibrationError(
                f"The {name} activations have shape {tuple(activations.shape)}; "
                "expected [prompts, layers, width] with at least one prompt."
            )
    if harmful.shape[1:] != harmless.shape[1:]:
        raise CalibrationError(
            f"Harmful and harmless activations differ in [layers, width]: {tuple(harmful.shape[1:])} "
            f"against {tuple(harmless.shape[1:])}. Both must come from the same model."
        )
    difference = (_mean(harmful) - _mean(harmless)).float()
    if not torch.isfinite(difference).all():
        raise CalibrationError(
            "The activations hold NaN or infinity, so no direction can be taken from them. "
            "Load the model in float32 or bfloat16 instead of float16 and try again."
        )
    return difference


def unit(vectors: Tensor) -> Tensor:
    """Each vector `[..., width]` divided by its length; a zero vector stays zero."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.clamp_min(torch.finfo(vectors.dtype).tiny)


def cosine(first: Tensor, second: Tensor) -> Tensor:
    """Cosine per layer, `[layers]`, of two sets of vectors `[layers, width]`."""
    return (unit(first.double()) * unit(second.double())).sum(-1).float()


def _mean(activations: Tensor) -> Tensor:
    # One layer at a time: a float64 copy of everything would take four times the memory.
    return torch.stack([activations[:, layer].double().mean(0) for layer in range(activations.shape[1])])
