"""LoRA adapters: which of them the gate may be used with.

An aligner is fitted on a base model, or on a base model with one adapter: with another adapter, or without
its own, the gate reads activations that it was not fitted on, and its operating point promises nothing. vLLM
serves them all from one engine, so every request is checked: those with the adapter of the aligner's target
are served, others are refused unless the operator lets them be gated all the same.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferaligner.errors import ModelLoadError

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # those that vLLM can be started for


@dataclass(frozen=True)
class AdapterRules:
    """`own` is the place of the adapter that the aligner was fitted on, None for the base model; `others`
    says whether requests with other adapters, or without, are gated too."""

    own: str | None
    others: bool

    def objection(self, request: Any) -> str | None:
        """Why a request with this `LoRARequest` (None: without adapter) is not served; None if it is."""
        if request is not None and request.load_inplace:
            return "An adapter cannot be replaced under an aligner. Start the engine anew."
        place = None if request is None else _place(request.lora_path)
        if self.others or place == (None if self.own is None else _place(self.own)):
            return None
        asked = "the base model" if request is None else f"the adapter {request.lora_name!r}"
        fitted = "the base model alone" if self.own is None else f"the adapter in {Path(self.own).name!r}"
        return (
            f"The aligner was fitted on {fitted}, and this request is for {asked}: its gate would promise "
            "nothing. The operator can allow it with `adapters: any`."
        )


def _place(path: str) -> str:
    """A folder as itself, under whatever name it was given; a hub id as it is."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def serving_flags(folder: Path, name: str) -> list[str]:
    """Flags of `vllm serve` that load an adapter, which clients call `name`. Raises as `rank_flags`."""
    return [*rank_flags(folder), "--lora-modules", f"{name}={folder.resolve()}"]


def rank_flags(folder: Path) -> list[str]:
    """Flags of an engine that can run an adapter.

    Raises `ModelLoadError` for a kind or a rank that vLLM does not run, and for weights that it leaves out.
    """
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    needed = max([int(config.get("r") or 0), *map(int, (config.get("rank_pattern") or {}).values())])
    rank = next((each for each in _RANKS if each >= needed), None)
    if config.get("peft_type") != "LORA" or not needed or rank is None:
        raise ModelLoadError(
            f"The adapter in {folder} is of type {config.get('peft_type')} and rank {needed}; vLLM runs LORA "
            f"up to rank {_RANKS[-1]}. Merge it into the model (PEFT's merge_and_unload, then "
            "save_pretrained), and fit the aligner on the merged model."
        )
    # vLLM checks that it knows a LoRA's settings, and passes over these weights without a word.
    beside = [name for name in _stored(folder) if "lora_" not in name]
    if beside:
        raise ModelLoadError(
            f"The adapter in {folder} holds {len(beside)} weights beside its low-rank ones, such as "
            f"{beside[0]}, which vLLM would leave out. Merge it into the model (PEFT's merge_and_unload, "
            "then save_pretrained), and fit the aligner on the merged model."
        )
    return ["--enable-lora", "--max-lora-rank", str(rank)]


def _stored(folder: Path) -> list[str]:
    """Names of the weights in an adapter's file."""
    file = folder / "adapter_model.safetensors"
    if file.is_file():
        from safetensors import safe_open

        try:
            with safe_open(str(file), framework="pt") as weights:
                return sorted(weights.keys())
        except Exception as error:
            raise ModelLoadError(f"The weights {file} cannot be read: {error}. Save them again.") from error
    import torch

    file = folder / "adapter_model.bin"
    try:
        return sorted(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ModelLoadError(f"The weights {file} cannot be read: {error}. Save them again.") from error
