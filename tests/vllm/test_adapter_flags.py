"""The flags with which vLLM runs an adapter, and the adapters of which it would run a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inferaligner.errors import ModelLoadError
from inferaligner.vllm.adapters import rank_flags, serving_flags
from tests.support.tiny_models import tiny_model

peft = pytest.importorskip("peft", reason="the extra `models` has it")


def save(folder: Path, **settings: Any) -> Path:
    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], **{"r": 4, **settings})
    peft.get_peft_model(tiny_model("llama"), config).save_pretrained(str(folder))
    return folder


def test_a_low_rank_adapter_gets_the_next_rank_that_vllm_has(tmp_path: Path) -> None:
    folder = save(tmp_path / "plain", r=9)
    assert rank_flags(folder) == ["--enable-lora", "--max-lora-rank", "16"]
    assert serving_flags(folder, "medicine")[-2:] == ["--lora-modules", f"medicine={folder.resolve()}"]


def test_weights_beside_the_low_rank_ones_are_refused(tmp_path: Path) -> None:
    folder = save(tmp_path / "more", modules_to_save=["lm_head"])
    with pytest.raises(ModelLoadError, match=r"weights besides its low-rank ones, such as .*lm_head"):
        rank_flags(folder)


def test_a_file_that_is_no_safetensors_is_named(tmp_path: Path) -> None:
    folder = save(tmp_path / "broken")
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelLoadError, match=r"adapter_model\.safetensors cannot be read"):
        rank_flags(folder)
