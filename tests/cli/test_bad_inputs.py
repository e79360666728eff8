"""Whatever a user may hand over that cannot be used: one message, exit code 2, and no model loaded for it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from inferaligner.models import loading
from tests.support.command_line import Run, refused

PromptFile = Callable[..., Path]


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that loads a model."""

    def load(*_: object, **__: object) -> None:
        raise RuntimeError("a model was loaded before everything cheap was checked")

    monkeypatch.setattr(loading, "load_model", load)


@pytest.fixture
def own(aligner: Path, tmp_path: Path) -> Path:
    """A copy of the aligner that may be damaged."""
    return shutil.copytree(aligner, tmp_path / "own")


# -- prompt files ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b"\n \n", "is empty"),
        ("other.csv", b"name,age\nAda,36\n", "no column"),
        ("latin.txt", "Br\xf6tchen backen?\n".encode("latin-1"), "not UTF-8"),
        ("broken.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "broken JSON"),
        ("table.xlsx", b"PK", "expected one of"),
    ],
)
@pytest.mark.parametrize("command", ["score", "generate"])
def test_prompt_files(
    run: Run, target: Path, aligner: Path, tmp_path: Path, command: str, name: str, content: bytes, words: str
) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    refused(run(command, target, "-a", aligner, "-i", file), name, words)


@pytest.mark.usefixtures("no_loading")
def test_a_wrong_column(run: Run, target: Path, aligner: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt\nhello\n")
    refused(run("score", target, "-a", aligner, "-i", f"{file}:query"), "'query'", "'prompt'")


@pytest.mark.usefixtures("no_loading")
def test_a_missing_prompt_file(run: Run, target: Path, aligner: Path) -> None:
    refused(run("score", target, "-a", aligner, "-i", "nowhere.txt"), "nowhere.txt", "does not exist")


# -- artifacts -------------------------------------------------------------------------------------------


def edit(folder: Path, **changes: object) -> None:
    file = folder / "aligner.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def truncate_vectors(folder: Path) -> None:
    file = folder / "vectors.safetensors"
    file.write_bytes(file.read_bytes()[:-20])


def truncate_settings(folder: Path) -> None:
    file = folder / "aligner.json"
    file.write_bytes(file.read_bytes()[:-20])


def nan_in_vectors(folder: Path) -> None:
    tensors = load_file(folder / "vectors.safetensors")
    tensors["ssv"][0, 0] = torch.nan
    save_file(tensors, folder / "vectors.safetensors")


def other_vectors(folder: Path) -> None:
    tensors = load_file(folder / "vectors.safetensors")
    save_file({name: -tensor for name, tensor in tensors.items()}, folder / "vectors.safetensors")


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: edit(folder, steering={"layers": [1], "strength": 0.0}), "altered"),
        (lambda folder: edit(folder, schema_version=99), "schema version 99"),
        (truncate_settings, "not readable JSON"),
        (truncate_vectors, "checksums differ"),
        (other_vectors, "checksums differ"),
        (nan_in_vectors, "checksums differ"),
        (lambda folder: (folder / "vectors.safetensors").unlink(), "cannot be read"),
        (lambda folder: (folder / "aligner.json").unlink(), "not an aligner"),
    ],
)
@pytest.mark.parametrize("command", ["score", "generate", "chat", "inspect", "export", "doctor"])
def test_a_damaged_aligner(
    run: Run,
    target: Path,
    own: Path,
    prompt_file: PromptFile,
    tmp_path: Path,
    command: str,
    damage: Callable[[Path], object],
    words: str,
) -> None:
    damage(own)
    arguments = {
        "inspect": [own],
        "export": [own, "-o", tmp_path / "vector.gguf"],
        "chat": [target, "-a", own],
        "doctor": [target, "-a", own],
    }.get(command, [target, "-a", own, "-i", prompt_file("hello")])
    refused(run(command, *arguments), words)


@pytest.mark.usefixtures("no_loading")
def test_no_aligner_at_all(run: Run, target: Path, tmp_path: Path) -> None:
    refused(run("chat", target, "-a", tmp_path / "nothing"), "not an aligner")
    refused(run("inspect", tmp_path / ("n" * 400)), "not an aligner")


# -- models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["score", "generate", "chat"])
def test_a_model_of_another_width(
    run: Run, other_width: Path, aligner: Path, prompt_file: PromptFile, command: str
) -> None:
    source = [] if command == "chat" else ["-i", prompt_file("hello")]
    outcome = run(command, other_width, "-a", aligner, *source)
    refused(outcome, "width of the residual stream is 16, expected 32")


def test_a_model_without_chat_template(
    run: Run, target: Path, aligner: Path, prompt_file: PromptFile, tmp_path: Path
) -> None:
    bare = shutil.copytree(target, tmp_path / "bare")
    for template in bare.glob("chat_template*"):
        template.unlink()
    settings = json.loads((bare / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (bare / "tokenizer_config.json").write_text(json.dumps(settings))
    refused(
        run("score", bare, "-a", aligner, "-i", prompt_file("hello")), "no chat template", "--chat-template"
    )
    template = tmp_path / "other.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}<|im_end|>")
    refused(
        run("score", bare, "-a", aligner, "-i", prompt_file("hello"), "--chat-template", template),
        "the chat template is another one",
    )


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("builtin:nothing", "no built-in model 'nothing'"),
        ("./nowhere", "no model at"),
        ("{empty}", "config.json"),
    ],
)
def test_no_model(
    run: Run, aligner: Path, prompt_file: PromptFile, tmp_path: Path, model: str, words: str
) -> None:
    (tmp_path / "empty").mkdir()
    model = model.format(empty=tmp_path / "empty")
    refused(run("score", model, "-a", aligner, "-i", prompt_file("hello")), words)


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("option", "words"),
    [
        (("--dtype", "float64"), "dtype 'float64'"),
        (("--device", "abacus"), "'abacus'"),
        (("--device", "cuda:99"), "'cuda:99'"),
        (("--quantization", "int3"), "'int3'"),
        (("--chat-template", "nowhere.jinja"), "nowhere.jinja"),
    ],
)
def test_options_of_loading(
    run: Run, target: Path, aligner: Path, prompt_file: PromptFile, option: tuple[str, str], words: str
) -> None:
    refused(run("score", target, "-a", aligner, "-i", prompt_file("hello"), *option), words)


# -- where to write --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("command", ["score", "generate"])
def test_output_files(
    run: Run, target: Path, aligner: Path, prompt_file: PromptFile, tmp_path: Path, command: str
) -> None:
    start = (command, target, "-a", aligner, "-i", prompt_file("hello"), "-o")
    refused(run(*start, tmp_path), "is a folder")
    refused(run(*start, tmp_path / "no" / "such" / "file"), "no folder")
    refused(run(*start, "/proc/scores.jsonl"), "cannot be written")
    refused(run(*start, tmp_path / "prompts.txt"), "read from")


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("option", "words"),
    [
        ((), "either --prompt"),
        (("--prompt", "a", "--input", "b.txt"), "either --prompt"),
        (("--prompt", "  "), "--prompt is empty"),
    ],
)
def test_what_to_answer(run: Run, target: Path, aligner: Path, option: tuple[str, ...], words: str) -> None:
    refused(run("generate", target, "-a", aligner, *option), words)
