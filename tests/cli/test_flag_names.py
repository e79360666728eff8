"""Messages of the library name arguments; the command line prints them with its flags."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from inferaligner.aligner import Aligner
from inferaligner.cli import inspect as inspect_command
from inferaligner.cli.flag_names import flags_of, in_flags, printing_flags
from inferaligner.cli.main import app
from inferaligner.cli.terminal import note
from inferaligner.errors import InferAlignerWarning, InputError
from inferaligner.fit.options import FitOptions
from tests.support.command_line import Run, refused
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PACKAGE = Path(__file__).parents[2] / "src" / "inferaligner"
COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`max_false_open` is 2; try 1", "--max-false-open is 2; try 1"),
        ('Leave `carry="answers"` out.', "Leave --carry answers out."),
        ("Leave `carry='answers'` out.", "Leave --carry answers out."),
        ("allow `max_false_open=0.63`.", "allow --max-false-open 0.63."),
        ("give `monitor=True`", "give --monitor"),
        ("`map_kind`", "--map"),
        (
            "`inferaligner fit --carry map` and `no_flag` stay",
            "`inferaligner fit --carry map` and `no_flag` stay",
        ),
    ],
)
def test_arguments_become_flags(text: str, expected: str) -> None:
    flags = flags_of(COMMANDS)
    assert in_flags(text, flags) == expected
    assert in_flags(text) == text, "outside a command nothing is translated"


def test_one_mistake_is_an_argument_in_the_library_and_a_flag_on_the_command_line(
    run: Run, target: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"^`max_false_open` is 2\.0; expected a share"):
        Aligner.fit(tiny_model(), tiny_tokenizer(), max_false_open=2.0)
    outcome = run("fit", target, "-o", tmp_path / "a", "--max-false-open", 2)
    refused(outcome, "Error: --max-false-open is 2.0; expected a share")
    assert "`" not in outcome.err
    with pytest.raises(InputError, match=r"^`map_kind` was given without `aligned`"):
        Aligner.fit(tiny_model(), tiny_tokenizer(), map_kind="ridge")
    outcome = run("fit", target, "-o", tmp_path / "a", "--map", "ridge")
    refused(outcome, "Error: --map was given without --aligned")


def test_notes_and_warnings_are_translated_too(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def warned(place: str) -> None:
        warnings.warn("fit with `monitor`", InferAlignerWarning, stacklevel=1)
        raise InputError("give `benign`")

    monkeypatch.setattr(inspect_command, "load_artifact", warned)
    outcome = run("inspect", "x")
    assert "Warning: fit with --monitor" in outcome.err and "Error: give --benign" in outcome.err
    with printing_flags({"carry": "--carry"}):
        note('better with `carry="answers"`')
    assert capsys.readouterr().err == "better with --carry answers\n"


def _texts(file: Path) -> Iterator[str]:
    """Strings of a file that are no docstrings."""
    tree = ast.parse(file.read_text("utf-8"))
    documented = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.value


@pytest.mark.parametrize(
    "file",
    [*sorted((PACKAGE / "fit").rglob("*.py")), *sorted((PACKAGE / "method").rglob("*.py"))],
    ids=lambda file: str(file.relative_to(PACKAGE)),
)
def test_messages_of_the_library_name_no_flag_of_their_own(file: Path) -> None:
    """A flag may stand in a whole command (`inferaligner calibrate DIR --benign FILE`), nowhere else."""
    for text in _texts(file):
        if "inferaligner " not in text:
            assert not re.search(r"(?<![\w-])--[a-z][a-z-]+", text), text


def test_every_argument_that_the_fields_name_is_a_flag() -> None:
    flags = flags_of(COMMANDS)
    for name, field in FitOptions.__dataclass_fields__.items():
        assert name in flags
        assert "`" not in in_flags(field.metadata["help"], flags)
