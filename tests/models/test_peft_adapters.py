import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from inferaligner.errors import MissingExtraError, ModelLoadError
from inferaligner.models import peft_adapters
from inferaligner.models.fingerprint import fingerprint_model
from inferaligner.models.peft_adapters import apply_adapter, read_adapter
from tests.support.tiny_adapter import save_adapter
from tests.support.tiny_models import tiny_model

IDS = torch.arange(3, 13)[None]


@pytest.fixture
def folder(adapter_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be broken."""
    return Path(shutil.copytree(adapter_folder, tmp_path / "adapter"))


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config.update(changes)
    path.write_text(json.dumps({key: value for key, value in config.items() if value != "DROP"}))


def test_base_is_read(adapter_folder: Path, llama_folder: Path) -> None:
    assert read_adapter(adapter_folder).base == str(llama_folder)


def test_base_beside_the_adapter(folder: Path, llama_folder: Path) -> None:
    shutil.copytree(llama_folder, folder.parent / "base")
    change_config(folder, base_model_name_or_path="../base")
    assert Path(read_adapter(folder).base).resolve() == folder.parent / "base"


def test_revision_of_the_base_is_kept(folder: Path) -> None:
    change_config(folder, base_model_name_or_path="org/base", revision="v2")
    assert read_adapter(folder).base == "org/base@v2"
    change_config(folder, base_model_name_or_path="org/base", revision=None)
    assert read_adapter(folder).base == "org/base"
    change_config(folder, base_model_name_or_path="builtin:smollm2-135m", revision="v2")
    assert read_adapter(folder).base == "builtin:smollm2-135m"


@pytest.mark.parametrize("text", ["{", "[]", '"LORA"', "{}", '{"peft_type": 3}', "\x00"])
def test_broken_configuration(folder: Path, text: str) -> None:
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=r"adapter configuration .*adapter_config\.json"):
        read_adapter(folder)


def test_configuration_that_is_not_text(folder: Path) -> None:
    (folder / "adapter_config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        read_adapter(folder)


@pytest.mark.parametrize("base", ["DROP", None, "", "  ", 3])
def test_no_base(folder: Path, base: Any) -> None:
    change_config(folder, base_model_name_or_path=base)
    with pytest.raises(ModelLoadError, match="names no base model"):
        read_adapter(folder)


def test_kinds_that_cannot_be_used(folder: Path) -> None:
    change_config(folder, task_type="SEQ_CLS")
    with pytest.raises(ModelLoadError, match="SEQ_CLS; expected CAUSAL_LM"):
        read_adapter(folder)
    change_config(folder, task_type="CAUSAL_LM", peft_type="PROMPT_TUNING")
    with pytest.raises(ModelLoadError, match="PROMPT_TUNING, which adds virtual tokens"):
        read_adapter(folder)
    change_config(folder, peft_type="LORA", alora_invocation_tokens=[4, 5])
    with pytest.raises(ModelLoadError, match=r"is an activated LoRA .*acts after certain tokens"):
        read_adapter(folder)


def test_kind_that_peft_does_not_know(folder: Path) -> None:
    change_config(folder, peft_type="LORA2")
    with pytest.raises(ModelLoadError, match=r"peft .* cannot read the adapter .*LORA2.* upgrade peft"):
        apply_adapter(tiny_model("llama"), folder, merge=True)


def test_no_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="has no weights"):
        read_adapter(folder)


def test_merged_and_kept_say_the_same(adapter_folder: Path) -> None:
    kept = apply_adapter(tiny_model("llama"), adapter_folder, merge=False)
    merged = apply_adapter(tiny_model("llama"), adapter_folder, merge=True)
    base = tiny_model("llama")
    assert isinstance(kept, PeftModel)
    assert type(merged) is type(base)
    assert all(p.requires_grad for p in merged.parameters()), "frozen weights are copied for every row"
    assert not merged.training
    assert not kept.training
    with torch.no_grad():
        logits = [model(input_ids=IDS).logits for model in (kept, merged, base)]
    torch.testing.assert_close(logits[0], logits[1])
    assert not torch.allclose(logits[1], logits[2], atol=1e-3)
    assert fingerprint_model(kept) == fingerprint_model(merged) == fingerprint_model(base)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_hidden_layers": 6}, "it lacks 12 weights that the model has a place for, such as .*layers.4"),
        ({"num_hidden_layers": 3}, "no place for 6 of its weights, such as .*layers.3"),
        ({"hidden_size": 64}, "size mismatch for .*copying a param with shape"),
        ({"family": "gpt2"}, "not found in the base model"),
    ],
)
def test_adapter_of_another_model(adapter_folder: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelLoadError, match=f"does not fit its base model: .*{message}"):
        apply_adapter(tiny_model(**settings), adapter_folder, merge=True)


def test_weights_that_are_not_numbers_are_not_merged(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_adapter(tmp_path, base="org/base")
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    first = sorted(weights)[0]
    weights[first] = torch.full_like(weights[first], float("nan"))
    save_file(weights, file)
    with pytest.raises(ModelLoadError, match="cannot be merged into its base model: NaNs"):
        apply_adapter(tiny_model("llama"), tmp_path, merge=True)


def test_cut_off_weights(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(ModelLoadError, match="does not fit its base model"):
        apply_adapter(tiny_model("llama"), folder, merge=True)


def test_peft_is_optional(adapter_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft_adapters, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match=r"inferaligner\[models\]"):
        apply_adapter(tiny_model("llama"), adapter_folder, merge=True)
