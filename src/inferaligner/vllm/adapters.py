"""LoRA adapters: which of them the gate may be used with.

An aligner is fitted on a base model, or on a base model with one adapter. With another adapter, or without
its own, the gate reads activations that it was not fitted on, and its operating point guarantees nothing. One
vLLM engine serves a base model and all its adapters, so every request is checked: requests with the adapter
of the aligner's target are served; all others are refused unless the operator has them gated too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferaligner.errors import ModelLoadError

_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # the values that --max-lora-rank takes


@dataclass(frozen=True)
class AdapterRules:
    """Which adapters requests may have.

    Attributes:
        own: folder or hub id of the adapter that the aligner was fitted on; None for the base model.
        any_adapter: requests with other adapters, or without one, are gated too.
    """

    own: str | None
    any_adapter: bool

    def objection(self, request: Any) -> str | None:
        """The reason why a request with this `LoRARequest` is not served; None if it is served.

        Args:
            request: vLLM's `LoRARequest`; None for a request without an adapter.
        """
        if request is not None and request.load_inplace:
            return "An adapter cannot be replaced under an aligner. Restart the engine."
        path = None if request is None else _resolved(request.lora_path)
        if self.any_adapter or path == (None if self.own is None else _resolved(self.own)):
            return None
        requested = "the base model" if request is None else f"the adapter {request.lora_name!r}"
        fitted = "the base model alone" if self.own is None else f"the adapter in {Path(self.own).name!r}"
        return (
            f"The aligner was fitted on {fitted}, and this request is for {requested}: the gate's operating "
            "point does not hold for it. The operator can allow it with `adapters: any`."
        )


def _resolved(path: str) -> str:
    """A folder's absolute path without links; a hub id unchanged."""
    return str(Path(path).resolve()) if Path(path).exists() else path


def serving_flags(folder: Path, name: str) -> list[str]:
    """Flags of `vllm serve` that load an adapter under a name for clients. Raises as `rank_flags`."""
    return [*rank_flags(folder), "--lora-modules", f"{name}={folder.resolve()}"]


def rank_flags(folder: Path) -> list[str]:
    """Flags that let an engine run an adapter.

    Raises:
        ModelLoadError: vLLM does not run adapters of this type or rank, or it would ignore some of the
            adapter's weights.
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
    # vLLM checks a LoRA's settings, but ignores these weights silently.
    ignored = [name for name in _weight_names(folder) if "lora_" not in name]
    if ignored:
        raise ModelLoadError(
            f"The adapter in {folder} holds {len(ignored)} weights besides its low-rank ones, such as "
            f"{ignored[0]}, which vLLM would ignore. Merge it into the model (PEFT's merge_and_unload, "
            "then save_pretrained), and fit the aligner on the merged model."
        )
    return ["--enable-lora", "--max-lora-rank", str(rank)]


def _weight_names(folder: Path) -> list[str]:
    """Names of the weights in an adapter's file."""
    file = folder / "adapter_model.safetensors"
    try:
        if file.is_file():
            from safetensors import safe_open

            with safe_open(str(file), framework="pt") as weights:
                return sorted(weights.keys())
        import torch

        file = folder / "adapter_model.bin"
        return sorted(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:
        raise ModelLoadError(f"The weights {file} cannot be read: {error}. Save them again.") from error
