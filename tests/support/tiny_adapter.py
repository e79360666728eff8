"""LoRA adapters for the tiny models, on disk."""

from __future__ import annotations

from pathlib import Path

import peft
import torch

from tests.support.tiny_models import tiny_model


def save_adapter(folder: Path, base: str, *, model: torch.nn.Module | None = None) -> None:
    """Write a LoRA adapter whose weights are not zero, with ``base`` as its base model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        settings = peft.LoraConfig(
            task_type="CAUSAL_LM",
            r=2,
            target_modules=["q_proj", "v_proj", "down_proj"],
            init_lora_weights=False,
        )
        adapted = peft.get_peft_model(tiny_model("llama") if model is None else model, settings)
    adapted.peft_config["default"].base_model_name_or_path = base
    adapted.save_pretrained(folder, save_embedding_layers=False)
