"""A tiny model on disk, an aligner for it, and a way to run commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from inferaligner.cli.main import app
from tests.support.tiny_aligner import tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Outcome]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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


def refused(outcome: Outcome, *words: str) -> None:
    """Asserts exit code 2 with one message that has `words` in it, on stderr alone, and no traceback."""
    assert outcome.code == 2, (outcome.code, outcome.out, outcome.err)
    assert "Traceback" not in outcome.err
    messages = [line for line in outcome.err.splitlines() if line.startswith("Error: ")]
    assert len(messages) == 1, outcome.err
    for word in words:
        assert word in messages[0], messages[0]
    assert outcome.out == ""
