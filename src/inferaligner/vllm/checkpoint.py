"""The model, flags and LoRA adapter with which vLLM loads a model specification of this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inferaligner.errors import ModelLoadError


@dataclass(frozen=True)
class ServedModel:
    """A model as vLLM loads it.

    Attributes:
        weights: folder or hub id that is given to `vllm serve`.
        flags: more flags for it.
        adapter: folder of the LoRA adapter on it, if there is one.
    """

    weights: str
    flags: list[str]
    adapter: Path | None = None


def served_model(target: str) -> ServedModel:
    """Resolves a model specification for vLLM.

    Raises:
        ModelLoadError: the specification cannot be resolved, or stacks several adapters: vLLM applies one to
            a request.
    """
    from inferaligner.models.sources import resolve

    checkpoint = resolve(target)
    if len(checkpoint.adapters) > 1:
        raise ModelLoadError(
            f"{target} is {len(checkpoint.adapters)} adapters on {checkpoint.weights}, and vLLM applies only "
            "one to a model. Merge them (PEFT's merge_and_unload, then save_pretrained), and fit the aligner "
            "on the merged model."
        )
    flags = [] if checkpoint.revision is None else ["--revision", checkpoint.revision]
    if checkpoint.tokenizer != checkpoint.weights:
        flags += ["--tokenizer", checkpoint.tokenizer]
    return ServedModel(checkpoint.weights, flags, next(iter(checkpoint.adapters), None))
