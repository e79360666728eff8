"""Precision and quantization of a model's weights, for which an aligner's bias was fitted.

Fingerprints leave them out on purpose, because vectors fit a model in any precision. A threshold does not:
rounding moves scores, and prompts near the threshold change sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from inferaligner.models.unwrap import unwrap

DTYPE, QUANTIZATION = "target dtype", "target quantization"


def number_format(model: nn.Module) -> dict[str, str]:
    """The number format of a model, in the form of an aligner's provenance.

    Returns:
        `target dtype`, such as "bfloat16", and `target quantization`, such as "bitsandbytes int8" or "none".
    """
    inner: Any = unwrap(model)
    return {DTYPE: str(inner.dtype).removeprefix("torch."), QUANTIZATION: _quantization(inner)}


def other_format(model: nn.Module, fitted: Mapping[str, str]) -> str | None:
    """One sentence if a model has another number format than at fit time.

    Args:
        model: The model.
        fitted: The provenance of the aligner, as `number_format` gives it.

    Returns:
        The sentence; None if the formats are equal or the provenance has no format.
    """
    now = number_format(model)
    then = {name: fitted.get(name, now[name]) for name in now}
    if then == now:
        return None
    return (
        f"The aligner was fitted on the model in {format_words(then)}, and here it is in {format_words(now)}."
    )


def format_words(format_: Mapping[str, str]) -> str:
    """A number format for messages: "bfloat16", or "bfloat16, quantised (…)"."""
    kind = format_.get(QUANTIZATION, "none")
    return format_[DTYPE] + ("" if kind == "none" else f", quantised ({kind})")


def _quantization(model: Any) -> str:
    if not getattr(model, "is_quantized", False):
        return "none"
    config = getattr(model.config, "quantization_config", None)
    settings = config if isinstance(config, Mapping) else getattr(config, "to_dict", dict)()
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method", "unknown")))
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return f"{method} {'int8' if settings.get('load_in_8bit') else 'int4'}"
    scheme = settings.get("quant_type")
    inner = scheme.get("default", scheme) if isinstance(scheme, Mapping) else scheme
    name = inner.get("_type") if isinstance(inner, Mapping) else type(inner).__name__ if inner else None
    return f"{method} {name}" if name else method
