"""A digest of a sample of a model's weights, to detect that weights have changed.

Fingerprints leave weights out on purpose, because vectors fit every fine-tune of one shape. The digest
differs between two fine-tunes, such as an adapter and the same adapter after more training.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from inferaligner.models.unwrap import unwrap

# Sampled numbers of each parameter. Training changes nearly all of them, so fewer would be enough; sampling a
# model of seven billion parameters takes a second.
_SAMPLED = 4096


@torch.no_grad()
def weight_digest(model: nn.Module) -> str:
    """SHA-256 of the names, the shapes and a regular sample of the numbers of all parameters.

    Numbers are rounded to bfloat16, so that a checkpoint has the same digest in float32 and in bfloat16;
    quantised weights have another. Of weights that accelerate has offloaded, only name and shape count.
    """
    digest = hashlib.sha256()
    for name, parameter in sorted(unwrap(model).named_parameters()):
        for part, tensor in _plain(name, parameter.detach()):
            digest.update(f"{part} {tuple(tensor.shape)}\n".encode())
            if tensor.device.type != "meta" and tensor.numel():
                digest.update(_sample(tensor))
    return digest.hexdigest()


def _plain(name: str, tensor: Tensor) -> list[tuple[str, Tensor]]:
    """The tensor itself, or the tensors that a quantised tensor consists of, by name."""
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
