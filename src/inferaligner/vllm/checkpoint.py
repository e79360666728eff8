"""A model specification as vLLM takes it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inferaligner.errors import ModelLoadError


@dataclass(frozen=True)
class ServedModel:
    """`weights` is the folder or hub id that vLLM loads, with `flags`; `adapter` the LoRA adapter on it."""

    weights: str
    flags: list[str]
    adapter: Path | None = None


def served_model(target: str) -> ServedModel:
    """What vLLM loads for a target.

    Raises `ModelLoadError` for several adapters on top of each other: vLLM puts one on a request.
    """
    from inferaligner.models.sources import resolve

    checkpoint = resolve(target)
    if len(checkpoint.adapters) > 1:
        raise ModelLoadError(
            f"{target} is {len(checkpoint.adapters)} adapters on {checkpoint.weights}, and vLLM puts one on "
            "a model. Merge them (PEFT's merge_and_unload, then save_pretrained), and fit the aligner on the "
            "merged model."
        )
    flags = [] if checkpoint.revision is None else ["--revision", checkpoint.revision]
    if checkpoint.tokenizer != checkpoint.weights:
        flags += ["--tokenizer", checkpoint.tokenizer]
    return ServedModel(checkpoint.weights, flags, next(iter(checkpoint.adapters), None))
