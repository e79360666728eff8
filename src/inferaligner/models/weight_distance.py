"""The distance between the weights of two models of the same shape."""

from __future__ import annotations

import re
from collections import defaultdict

import torch
from torch import nn

from inferaligner.models.anatomy import dissect
from inferaligner.models.unwrap import unwrap


@torch.no_grad()
def weight_distances(model: nn.Module, other: nn.Module) -> dict[str, float]:
    """‖W - W'‖ / ‖W'‖ (Frobenius) per kind of decoder weight over all layers, and for the whole decoder.

    Args:
        model: The model with the weights W.
        other: The model with the weights W'.

    Returns:
        Distances by a weight's name within its layer, such as "self_attn.q_proj", and for "embedding" and
        "decoder"; empty if shapes or names differ or weights are quantised.
    """
    if getattr(unwrap(model), "is_quantized", False) or getattr(unwrap(other), "is_quantized", False):
        return {}
    ours, theirs = _weights(model), _weights(other)
    if ours.keys() != theirs.keys() or any(ours[name].shape != theirs[name].shape for name in ours):
        return {}
    moved: dict[str, float] = defaultdict(float)
    length: dict[str, float] = defaultdict(float)
    for name, weight in ours.items():
        kind = re.sub(r"^\d+\.", "", name).removesuffix(".weight")
        reference = theirs[name].to(weight.device).float()
        apart = float((weight.float() - reference).double().square().sum())
        size = float(reference.double().square().sum())
        for at in (kind,) if kind == "embedding" else (kind, "decoder"):
            moved[at] += apart
            length[at] += size
    return {kind: (moved[kind] / length[kind]) ** 0.5 if length[kind] else 0.0 for kind in moved}


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = dict(dissect(model).layers.named_parameters())
    embedding = getattr(unwrap(model), "get_input_embeddings", lambda: None)()
    if embedding is not None:
        weights["embedding"] = embedding.weight
    return weights
