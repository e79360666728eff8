import json
from pathlib import Path
from typing import Any

import pytest

from inferaligner.errors import MissingExtraError, ModelLoadError
from inferaligner.models import peft_adapters, sources
from inferaligner.models.builtin import Builtin
from inferaligner.models.hub import HubRepository
from inferaligner.models.sources import Checkpoint, resolve
from tests.support.tiny_adapter import save_adapter
from tests.support.tiny_gguf import write_gguf
from tests.support.tiny_models import CHAT_TEMPLATE, tiny_model, tiny_tokenizer


def pretend_hub(monkeypatch: pytest.MonkeyPatch, source: str, *files: str) -> None:
    def look_up(repository: str, revision: str | None) -> HubRepository:
        return HubRepository(source or repository, revision, frozenset(files))

    monkeypatch.setattr(sources, "look_up", look_up)


def pretend_builtin(monkeypatch: pytest.MonkeyPatch, spec: str) -> None:
    monkeypatch.setattr(sources, "locate_builtin", lambda _name: Builtin(spec, ways="install it, or find it"))


def test_folder(llama_folder: Path) -> None:
    assert resolve(llama_folder) == Checkpoint(str(llama_folder), None, str(llama_folder))


def test_adapter_brings_its_base(adapter_folder: Path, llama_folder: Path) -> None:
    expected = Checkpoint(str(llama_folder), None, str(llama_folder), (adapter_folder,))
    assert resolve(str(adapter_folder)) == expected


def test_tokenizer_of_the_adapter_goes_first(tmp_path: Path, llama_folder: Path) -> None:
    save_adapter(tmp_path, base=str(llama_folder))
    tiny_tokenizer().save_pretrained(tmp_path)
    assert resolve(tmp_path).tokenizer == str(tmp_path)


def test_adapter_of_an_adapter(tmp_path: Path, adapter_folder: Path, llama_folder: Path) -> None:
    save_adapter(tmp_path, base=str(adapter_folder))
    found = resolve(tmp_path)
    assert found.weights == str(llama_folder)
    assert found.adapters == (adapter_folder, tmp_path)


def test_adapter_whose_base_is_built_in(
    tmp_path: Path, llama_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_builtin(monkeypatch, str(llama_folder))
    save_adapter(tmp_path, base="builtin:anything")
    found = resolve(tmp_path)
    assert (found.weights, found.adapters) == (str(llama_folder), (tmp_path,))


def test_adapter_whose_base_is_gone(tmp_path: Path) -> None:
    save_adapter(tmp_path, base="/gone/base")
    with pytest.raises(ModelLoadError, match=r"needs its base model '/gone/base': There is no model at"):
        resolve(tmp_path)


def test_adapter_whose_base_is_itself(tmp_path: Path) -> None:
    save_adapter(tmp_path, base=str(tmp_path))
    with pytest.raises(ModelLoadError, match="more than 10 times over"):
        resolve(tmp_path)


def test_peft_is_asked_for_before_the_base_is_loaded(
    adapter_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peft_adapters, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtraError, match="is a PEFT adapter"):
        resolve(adapter_folder)


def test_gguf_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFERALIGNER_CACHE", str(tmp_path / "cache"))
    file = write_gguf(tmp_path / "a.gguf", tiny_model("llama"), chat_template=CHAT_TEMPLATE)
    found = resolve(file)
    assert Path(found.weights).parent == tmp_path / "cache" / "gguf"
    assert found.tokenizer == found.weights


def test_built_in_that_cannot_be_had_names_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_builtin(monkeypatch, "/gone/model")
    with pytest.raises(
        ModelLoadError, match=r"builtin:x could not be loaded: .* To get it, install it, or find it\."
    ):
        resolve("builtin:x")


def test_hub_model(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_hub(monkeypatch, "", "config.json", "model.safetensors")
    assert resolve("org/name@v1") == Checkpoint("org/name", "v1", "org/name")


def test_hub_adapter(monkeypatch: pytest.MonkeyPatch, adapter_folder: Path, llama_folder: Path) -> None:
    pretend_hub(monkeypatch, str(adapter_folder), "adapter_config.json", "adapter_model.safetensors")
    found = resolve("org/adapter")
    assert (found.weights, found.adapters) == (str(llama_folder), (adapter_folder,))


def test_hub_gguf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("INFERALIGNER_CACHE", str(tmp_path / "cache"))
    (tmp_path / "q4").mkdir()
    write_gguf(tmp_path / "q4" / "a.gguf", tiny_model("llama"), chat_template=CHAT_TEMPLATE)
    pretend_hub(monkeypatch, str(tmp_path), "q4/a.gguf", "README.md")
    assert Path(resolve("org/name/q4/a.gguf").weights).parent == tmp_path / "cache" / "gguf"
    with pytest.raises(ModelLoadError, match=r"has no file q5/a\.gguf"):
        resolve("org/name/q5/a.gguf")
    with pytest.raises(ModelLoadError, match=r"Name one of its GGUF files: org/name/q4/a\.gguf"):
        resolve("org/name")


def test_hub_repository_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_hub(monkeypatch, "", "README.md")
    with pytest.raises(ModelLoadError, match=r"has no config\.json"):
        resolve("org/name")


def test_adapter_config_names_the_file_that_is_broken(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ModelLoadError, match=r"adapter_config\.json names no base model"):
        resolve(tmp_path)


def test_shipped_adapter_resolves_to_the_built_in_base(
    monkeypatch: pytest.MonkeyPatch, llama_folder: Path
) -> None:
    """The chain builtin -> adapter folder -> builtin base, with both ends replaced."""
    from inferaligner.models import builtin

    folder = Path(builtin.__file__).parent / "adapters" / "smollm2-135m-aligned"
    if not (folder / "adapter_config.json").is_file():
        with pytest.raises(ModelLoadError, match="no adapter in this installation"):
            resolve("builtin:smollm2-135m-aligned")
        return
    names: list[str] = []

    def locate(name: str) -> Any:
        names.append(name)
        return Builtin(str(folder if name.endswith("aligned") else llama_folder), "")

    monkeypatch.setattr(sources, "locate_builtin", locate)
    assert resolve("builtin:smollm2-135m-aligned").adapters == (folder,)
    assert names == ["smollm2-135m-aligned", "smollm2-135m"]
