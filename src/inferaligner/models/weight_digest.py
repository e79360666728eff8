"""Whether the weights of a model are those of another time, from a sample of them.

Fingerprints leave weights out on purpose, because vectors fit every fine-tune of one shape. This tells two
of those apart, such as an adapter and the same one trained on, whatever they are called.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from inferaligner.models.unwrap import unwrap

# Numbers taken of each parameter. Training moves nearly all of them, so a few would do; reading these from
# seven billion parameters takes a second.
_SAMPLED = 4096


@torch.no_grad()
def weight_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes and evenly spread numbers of all parameters.

    Numbers are rounded to bfloat16, so that a checkpoint loaded in float32 and in bfloat16 has one digest;
    quantised weights have another. Weights that accelerate keeps elsewhere count by name and shape alone.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(unwrap(model).named_parameters()):
        for part, tensor in _plain(name, parameter.detach()):
            digest.update(f"{part} {tuple(tensor.shape)}\n".encode())
            if tensor.device.type != "meta" and tensor.numel():
                digest.update(_sample(tensor))
    return digest.hexdigest()


def _plain(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """A tensor, or those that a quantised one is made of."""
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [(name, tensor)]
    parts = []
    for inner in flatten()[0]:
        parts += _plain(f"{name}.{inner}", getattr(tensor, inner))
    return parts


def _sample(tensor: Tensor) -> bytes:
    flat = tensor.reshape(-1)
    step = max(1, flat.numel() // _SAMPLED)
    picked = flat[::step].contiguous()
    if picked.is_floating_point():
        picked = picked.to(torch.bfloat16)
    return picked.cpu().view(torch.uint8).numpy().tobytes()
