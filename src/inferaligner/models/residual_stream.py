"""The residual stream in the output of a decoder layer: a tensor, or the first item of a tuple.

``residual`` and ``with_residual`` are called in forward hooks, once per layer and token, so they are kept
short.
"""

from __future__ import annotations

from typing import Any

import torch

from inferaligner.errors import SteeringError


def residual(output: Any) -> torch.Tensor:
    """The residual stream in the output of a decoder layer.

    Args:
        output: A tensor, or a tuple or list whose first item is one.

    Returns:
        The stream itself, not a copy: ``[rows, tokens, width]``.

    Raises:
        SteeringError: The output has another shape or type.
    """
    stream = output[0] if isinstance(output, (tuple, list)) and output else output
    if isinstance(stream, torch.Tensor) and stream.dim() == 3 and stream.is_floating_point():
        return stream
    returned = (
        f"a tensor of shape {list(stream.shape)} and type {stream.dtype}"
        if isinstance(stream, torch.Tensor)
        else f"a {type(stream).__name__}"
    )
    raise SteeringError(
        f"A decoder layer returned {returned}; expected its residual stream: a floating-point tensor "
        "[rows, tokens, width], alone or as the first item of a tuple or list. "
        "This architecture cannot be steered."
    )


def with_residual(output: Any, tensor: torch.Tensor) -> Any:
    """``output`` of a decoder layer with its residual stream replaced by ``tensor``.

    Args:
        output: The output of the layer; it is not changed.
        tensor: The new stream, with the shape, dtype and device of the old one.

    Returns:
        An object of the type of ``output``.

    Raises:
        SteeringError: ``output`` holds no residual stream, or ``tensor`` differs from it in shape, dtype
            or device, which would change the numbers of every later layer.
    """
    stream = residual(output)
    if tensor.shape != stream.shape or tensor.dtype != stream.dtype or tensor.device != stream.device:
        raise SteeringError(
            f"A residual stream of shape {list(tensor.shape)}, {tensor.dtype} on {tensor.device} was to "
            f"replace one of shape {list(stream.shape)}, {stream.dtype} on {stream.device}; expected the "
            "same of both."
        )
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, list):
        return [tensor, *output[1:]]
    if hasattr(output, "_make"):  # a named tuple
        return output._make((tensor, *output[1:]))
    return (tensor, *output[1:])
