from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from inferaligner.cli import inspect as inspect_command
from inferaligner.errors import SteeringError
from inferaligner.version import __version__
from tests.support.command_line import Run, refused

COMMANDS = ("fit", "score", "generate", "chat", "inspect", "export", "doctor")


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a clean interpreter."""
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=120)


def test_help_names_every_command(run: Run) -> None:
    outcome = run("--help")
    assert outcome.code == 0
    for command in COMMANDS:
        assert f" {command} " in outcome.out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(run: Run, command: str) -> None:
    outcome = run(command, "--help")
    assert outcome.code == 0
    assert "Usage" in outcome.out


def test_version(run: Run) -> None:
    assert run("--version").out.strip() == f"inferaligner {__version__}"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['inferaligner', '--help']\n"
        "from inferaligner.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as leaving:\n"
        "    assert leaving.code == 0, leaving.code\n"
        "slow = 'torch transformers numpy pydantic matplotlib huggingface_hub'.split()\n"
        "heavy = set(slow) & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)\n"
    )
    done = python("-c", code)
    assert done.returncode == 0, done.stderr


def test_the_module_runs_as_the_command_does() -> None:
    done = python("-m", "inferaligner.cli.main", "--version")
    assert (done.returncode, done.stdout) == (0, f"inferaligner {__version__}\n")


def test_a_deliberate_error_is_one_line_without_traceback(tmp_path: Path) -> None:
    done = python("-m", "inferaligner.cli.main", "inspect", str(tmp_path / "nothing"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("Error: ") and done.stderr.count("\n") == 1


def test_markup_in_a_message_is_printed_as_it_is(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(place: str) -> None:
        raise SteeringError("expected [bold]\n[layers, width]")

    monkeypatch.setattr(inspect_command, "load_artifact", broken)
    refused(run("inspect", "x"), "expected [bold] [layers, width]")


def test_an_unexpected_error_is_short_and_names_the_way_to_the_traceback(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(place: str) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(inspect_command, "load_artifact", broken)
    outcome = run("inspect", "x")
    assert outcome.code == 1
    assert "ZeroDivisionError: boom" in outcome.err
    assert "INFERALIGNER_DEBUG=1" in outcome.err
    assert "Traceback" not in outcome.err
    monkeypatch.setenv("INFERALIGNER_DEBUG", "1")
    outcome = run("inspect", "x")
    assert outcome.code == 1
    assert "Traceback" in outcome.err and "in broken" in outcome.err


def test_an_interruption_has_its_exit_code(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(place: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inspect_command, "load_artifact", interrupted)
    outcome = run("inspect", "x")
    assert outcome.code == 130
    assert outcome.err.strip() == "Interrupted."


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("score",),
        ("inspect", "x", "--nonsense"),
        ("generate", "t", "--aligner", "a", "--max-new-tokens", "0"),
        ("generate", "t", "--aligner", "a", "--batch-size", "many"),
        ("fit", "t", "--aligned", "a", "-o", "o", "--gate-layer", "-1"),
        ("fit", "t", "--aligned", "a", "-o", "o", "--positions", "some"),
        ("export", "d", "-o", "f", "--to", "onnx"),
    ],
)
def test_wrong_usage_is_refused(run: Run, arguments: tuple[str, ...]) -> None:
    outcome = run(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.err
    assert outcome.out == ""
