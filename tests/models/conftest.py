"""Folders that hold tiny models, made once for all tests of this package."""

from pathlib import Path

import pytest
import torch

from tests.support.tiny_adapter import save_adapter
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in bfloat16 with its tokenizer, as save_pretrained writes it. Do not change it."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    tiny_model("llama").to(torch.bfloat16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, llama_folder: Path) -> Path:
    """A LoRA adapter of ``llama_folder``, without a tokenizer. Do not change it."""
    folder = tmp_path_factory.mktemp("adapters") / "lora"
    save_adapter(folder, base=str(llama_folder))
    return folder
