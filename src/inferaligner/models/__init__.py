"""Models: loading them, finding their decoder layers, and telling whether two of them fit together."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from inferaligner.models.anatomy import (
    Anatomy,
    backbone,
    check_stream,
    dissect,
    input_device,
    register_layout,
    residual,
    with_residual,
)

if TYPE_CHECKING:
    from inferaligner.models.builtin import builtin_names
    from inferaligner.models.fingerprint import (
        ModelFingerprint,
        TokenizerFingerprint,
        differences,
        fingerprint_model,
        fingerprint_tokenizer,
    )
    from inferaligner.models.loading import LoadedModel, load_model

__all__ = [
    "Anatomy",
    "LoadedModel",
    "ModelFingerprint",
    "TokenizerFingerprint",
    "backbone",
    "builtin_names",
    "check_stream",
    "differences",
    "dissect",
    "fingerprint_model",
    "fingerprint_tokenizer",
    "input_device",
    "load_model",
    "register_layout",
    "residual",
    "with_residual",
]

# Steering and extraction import this package for the anatomy alone. They need torch and transformers and no
# other package (benchmarks/gpu.py runs where there is no other), so the rest loads with its first use.
_LATER = {
    "builtin": ("builtin_names",),
    "fingerprint": (
        "ModelFingerprint",
        "TokenizerFingerprint",
        "differences",
        "fingerprint_model",
        "fingerprint_tokenizer",
    ),
    "loading": ("LoadedModel", "load_model"),
}


def __getattr__(name: str) -> Any:
    for module, names in _LATER.items():
        if name in names:
            return getattr(import_module(f"inferaligner.models.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
