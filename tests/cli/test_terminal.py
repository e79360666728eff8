"""Commands on terminals that are not UTF-8: nothing ends with an encoding error, and files stay UTF-8."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from inferaligner.cli.main import app, main
from inferaligner.cli.terminal import tolerate_any_encoding
from tests.support.command_line import Run, refused

ENCODINGS = ("cp1252", "ascii")
COMMANDS = [command.name for command in app.registered_commands]


def on_terminal(
    monkeypatch: pytest.MonkeyPatch, encoding: str, *arguments: object, stdin: bytes = b""
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of the command's entry point on streams of that encoding."""
    out, err = io.BytesIO(), io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding=encoding, write_through=True))
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(err, encoding=encoding, write_through=True))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding=encoding))
    monkeypatch.setattr(sys, "argv", ["inferaligner", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    return (
        code if isinstance(code, int) else 0,
        out.getvalue().decode(encoding),
        err.getvalue().decode(encoding),
    )


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_is_printed(monkeypatch: pytest.MonkeyPatch, encoding: str, command: str) -> None:
    code, out, err = on_terminal(monkeypatch, encoding, *[command] * bool(command), "--help")
    assert (code, err) == (0, "")
    assert "Usage: inferaligner" in out


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_inspect_in_a_process_of_its_own(aligner: Path, encoding: str) -> None:
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": encoding, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-m", "inferaligner.cli.main", "inspect", str(aligner)],
        capture_output=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    out = done.stdout.decode(encoding)
    assert "|SRV|" in out and "#" in out  # ‖SRV‖, and the bars of the layers


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_chat(monkeypatch: pytest.MonkeyPatch, target: Path, aligner: Path, encoding: str) -> None:
    code, out, err = on_terminal(
        monkeypatch, encoding, "chat", target, "--aligner", aligner, "--on-open", "refuse",
        "--refusal", "Nein – “später” 好", "--max-new-tokens", "40",
        stdin=b"Why is the sky blue?\nHow do I bake a loaf of bread at home?\n",
    )  # fmt: skip
    assert code == 0, err
    assert "Nein" in out and "?" in out and "好" not in out


def test_a_line_that_is_not_text_is_refused_and_the_chat_goes_on(
    monkeypatch: pytest.MonkeyPatch, target: Path, aligner: Path
) -> None:
    code, out, err = on_terminal(
        monkeypatch, "ascii", "chat", target, "--aligner", aligner, "--max-new-tokens", "4",
        stdin=b"caf\xc3\xa9\nWhy is the sky blue?\n",
    )  # fmt: skip
    assert code == 0
    assert err.count("Error: The line holds bytes that are not text") == 1
    assert out.strip()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_loses_nothing_and_files_stay_utf8(
    monkeypatch: pytest.MonkeyPatch, target: Path, aligner: Path, tmp_path: Path, encoding: str
) -> None:
    text = "Why is “the sky” → 好?"
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": text}, ensure_ascii=False), encoding="utf-8")
    common = ("score", target, "--aligner", aligner, "--input", tmp_path / "p.jsonl")
    code, out, err = on_terminal(monkeypatch, encoding, *common)
    assert code == 0, err
    assert json.loads(out)["prompt"] == text
    code, out, err = on_terminal(monkeypatch, encoding, *common, "-o", tmp_path / "scores.jsonl")
    assert (code, out) == (0, ""), err
    assert json.loads((tmp_path / "scores.jsonl").read_text(encoding="utf-8"))["prompt"] == text


def test_errors_and_notes_are_printed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, out, err = on_terminal(monkeypatch, "ascii", "inspect", tmp_path / "kein-Ordner-für-好")
    assert (code, out) == (2, "")
    assert err.startswith("Error: ") and "?" in err


def test_streams_without_an_encoding_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr", "stdin"):
        monkeypatch.setattr(sys, name, None)
    tolerate_any_encoding()


@pytest.mark.parametrize(
    ("command", "option"), [("generate", "--prompt"), ("fit", "--system"), ("generate", "--refusal")]
)
def test_arguments_that_could_not_be_decoded_are_refused(
    run: Run, target: Path, aligner: Path, tmp_path: Path, command: str, option: str
) -> None:
    arguments = {
        "--prompt": ("--aligner", aligner),
        "--refusal": ("--aligner", aligner, "--prompt", "a", "--on-open", "refuse"),
        "--system": ("--aligned", target, "-o", tmp_path / "new"),
    }[option]
    refused(run(command, target, *arguments, option, "caf\udcc3\udca9"), option, "PYTHONUTF8=1")
