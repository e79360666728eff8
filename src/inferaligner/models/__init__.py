"""Models: loading them, finding their decoder layers, and checking whether two of them fit together.

Loading, in the order of the calls:

    specs               reads what the user wrote for a model into a `ModelSpec`; no network, no weights
    sources             follows a spec to the files of a base model, its tokenizer and its adapters; uses
                        `hub`, `builtin` and `gguf`, which converts a GGUF file into a model folder
    loading             `load_model`: the files as a `LoadedModel`; `placement` reads dtype, device and
                        quantization, `templates` the chat template, `processors` the processor of pictures
    peft_adapters       puts an adapter onto its base; `adapter_match` checks that the two belong together

A loaded model:

    anatomy             the decoder layers and the module below the LM head; `unwrap` and `residual_stream`
    generation          answers to many prompts; `generation_settings`, `grouped_attention`, `kv_cache`
    shrinking_batch     the decoding loop of `generation`, in which rows that have ended leave the batch;
                        `row_keepers` and `batch_processors` are what has to move with the rows
    fingerprint         whether vectors fit a model and prompts fit a tokenizer; `number_format`,
                        `weight_digest` and `weight_distance` compare the numbers of the weights
"""

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

# Steering and extraction import this package for the anatomy alone, which needs torch and transformers and no
# other package (benchmarks/gpu.py runs where no other is installed). The rest is imported on first use.
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
