"""In what numbers a model's weights are kept: what an aligner's bias was fitted for.

Fingerprints leave this out on purpose, because vectors fit a model in any precision. A threshold is another
matter: rounding moves scores, and prompts near it change sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from inferaligner.models.unwrap import unwrap

DTYPE, QUANTIZATION = "target dtype", "target quantization"


def number_format(model: nn.Module) -> dict[str, str]:
    """`target dtype`, such as "bfloat16", and `target quantization`, such as "bitsandbytes int8" or "none";
    as an aligner's provenance keeps them."""
    inner: Any = unwrap(model)
    return {DTYPE: str(inner.dtype).removeprefix("torch."), QUANTIZATION: _quantization(inner)}


def other_format(model: nn.Module, fitted: Mapping[str, str]) -> str | None:
    """One sentence on how a model's numbers differ from those an aligner was fitted with; None where they do
    not, or where the aligner does not tell."""
    here = number_format(model)
    then = {name: fitted.get(name, here[name]) for name in here}
    if then == here:
        return None
    told, now = format_words(then), format_words(here)
    return f"The aligner was fitted on the model in {told}, and here it is in {now}."


def format_words(format_: Mapping[str, str]) -> str:
    """A number format in words: "bfloat16", or "bfloat16, quantised (…)"."""
    kind = format_.get(QUANTIZATION, "none")
    return format_[DTYPE] + ("" if kind == "none" else f", quantised ({kind})")


def _quantization(model: Any) -> str:
    if not getattr(model, "is_quantized", False):
        return "none"
    config = getattr(model.config, "quantization_config", None)
    told = config if isinstance(config, Mapping) else getattr(config, "to_dict", dict)()
    method = str(getattr(told.get("quant_method"), "value", told.get("quant_method", "unknown")))
    if told.get("load_in_8bit") or told.get("load_in_4bit"):
        return f"{method} {'int8' if told.get('load_in_8bit') else 'int4'}"
    scheme = told.get("quant_type")
    inner = scheme.get("default", scheme) if isinstance(scheme, Mapping) else scheme
    name = inner.get("_type") if isinstance(inner, Mapping) else type(inner).__name__ if inner else None
    return f"{method} {name}" if name else method
