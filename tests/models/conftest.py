"""Folders that hold tiny models, made once for all tests of this package."""

from pathlib import Path

import peft
import pytest
import torch

from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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
