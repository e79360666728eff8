from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inferaligner.errors import ModelLoadError
from inferaligner.models.specs import Kind, ModelSpec, parse_spec


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("builtin:tiny", ModelSpec("builtin:tiny", Kind.BUILTIN, "tiny")),
        ("gpt2-of-nobody", ModelSpec("gpt2-of-nobody", Kind.HUB, "gpt2-of-nobody")),
        ("org/name", ModelSpec("org/name", Kind.HUB, "org/name")),
        ("org/Name-1.5_b", ModelSpec("org/Name-1.5_b", Kind.HUB, "org/Name-1.5_b")),
        ("org/name@main", ModelSpec("org/name@main", Kind.HUB, "org/name", "main")),
        ("org/name@refs/pr/1", ModelSpec("org/name@refs/pr/1", Kind.HUB, "org/name", "refs/pr/1")),
        ("org/name/a.gguf", ModelSpec("org/name/a.gguf", Kind.HUB_GGUF, "org/name", None, "a.gguf")),
        (
            "org/name/q4/a.gguf@v1",
            ModelSpec("org/name/q4/a.gguf@v1", Kind.HUB_GGUF, "org/name", "v1", "q4/a.gguf"),
        ),
    ],
)
def test_what_is_not_on_this_machine(text: str, expected: ModelSpec) -> None:
    assert parse_spec(text) == expected


def test_folders_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").touch()
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "config.json").touch()
    (tmp_path / "adapter" / "adapter_config.json").touch()
    (tmp_path / "file.GGUF").touch()
    monkeypatch.chdir(tmp_path)
    # A folder of this name goes before the hub.
    assert parse_spec("org/model").kind is Kind.FOLDER
    assert parse_spec(tmp_path / "org" / "model").kind is Kind.FOLDER
    assert parse_spec("./adapter").kind is Kind.ADAPTER
    assert parse_spec("file.GGUF").kind is Kind.GGUF
    monkeypatch.setenv("HOME", str(tmp_path))
    assert parse_spec("~/adapter").location == str(tmp_path / "adapter")


@pytest.mark.parametrize(
    "text",
    ["", "  ", ".", "./nothing", "/nothing/here", "~/nothing", "nothing.gguf", "a/b/c", "a b", "org\\name"],
)
def test_nothing_at_that_place(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelLoadError, match=r"There is no model at|has no config\.json"):
        parse_spec(text)


def test_folder_without_config_says_what_is_in_it(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"no config\.json and no adapter_config\.json \(files: none\)"):
        parse_spec(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelLoadError, match=r"files: model\.safetensors"):
        parse_spec(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelLoadError, match=r"Name the file: .*model\.gguf"):
        parse_spec(tmp_path)


def test_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    with pytest.raises(ModelLoadError, match=r"is a file; expected a \.gguf file or a folder"):
        parse_spec(file)


@pytest.mark.parametrize("text", ["~nobody-of-that-name", "~nobody-of-that-name/model", "~\0"])
def test_the_home_of_nobody(text: str) -> None:
    with pytest.raises(ModelLoadError, match="There is no model at"):
        parse_spec(text)


@given(st.text(max_size=40))
@example("~0")
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        spec = parse_spec(text)
    except ModelLoadError:
        return
    assert spec.text == text.strip()
    assert isinstance(spec.kind, Kind)


def test_folder_of_several_adapters_names_them(tmp_path: Path) -> None:
    for name in ("law", "medicine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text("{}")
    with pytest.raises(
        ModelLoadError, match=r"holds 2 adapters .*\(law, medicine\)\. Name the adapter: .*law"
    ):
        parse_spec(tmp_path)
