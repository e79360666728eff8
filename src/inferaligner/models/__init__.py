"""Models: loading them, finding their decoder layers, and telling whether two of them fit together."""

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
