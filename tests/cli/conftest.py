"""A tiny model on disk, an aligner for it, and a way to run commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from inferaligner.cli.main import app
from tests.support.command_line import Outcome, Run
from tests.support.tiny_aligner import tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process: `run("score", target, "--aligner", folder)`."""
    # Wide, so that rich breaks no line that a test looks for.
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.delenv("INFERALIGNER_DEBUG", raising=False)

    def command(*arguments: object, stdin: str | None = None) -> Outcome:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)
        assert not isinstance(result.exception, Exception) or isinstance(result.exception, SystemExit)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return command


@pytest.fixture(scope="session")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama in float32 with its tokenizer. Do not change it."""
    folder = tmp_path_factory.mktemp("cli") / "target"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def other_width(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, half as wide. Do not change it."""
    folder = tmp_path_factory.mktemp("cli") / "narrow"
    tiny_model("llama", hidden_size=16).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def aligner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An aligner for `target`; opens on half of `tests.support.tiny_aligner.PROMPTS`. Do not change it."""
    folder = tmp_path_factory.mktemp("cli") / "aligner"
    return tiny_aligner(tiny_model("llama"), tiny_tokenizer()).save_pretrained(folder)


@pytest.fixture
def prompt_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes prompts, one a line."""

    def write(*prompts: str, name: str = "prompts.txt") -> Path:
        file = tmp_path / name
        file.write_text("\n".join(prompts) + "\n", encoding="utf-8")
        return file

    return write
