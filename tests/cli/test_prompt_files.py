"""Prompt files on the command line: joined prompts, a warning per file on stderr, one line for an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import Run, refused

CHAT = [
    {"role": "system", "content": "You are a baker."},
    {"role": "user", "content": "How do I bake a loaf of bread at home?"},
]


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"messages": CHAT}) for _ in range(3)), encoding="utf-8")
    return file


def test_score_joins_an_alpaca_file(run: Run, target: Path, aligner: Path, tmp_path: Path) -> None:
    file = tmp_path / "alpaca.json"
    file.write_text(json.dumps([{"instruction": "Explain the evening", "input": "in a few words."}]))
    outcome = run("score", target, "--aligner", aligner, "--input", file)
    assert [row["prompt"] for row in outcome.rows()] == ["Explain the evening\nin a few words."]
    assert "Warning" not in outcome.err
    outcome = run("score", target, "--aligner", aligner, "--input", f"{file}:instruction")
    assert [row["prompt"] for row in outcome.rows()] == ["Explain the evening"]


@pytest.mark.parametrize("command", ["score", "generate", "calibrate", "fit"])
def test_messages_are_warned_of_once_on_stderr(
    run: Run, target: Path, aligner: Path, chats: Path, tmp_path: Path, command: str
) -> None:
    arguments = {
        "score": ("score", target, "--aligner", aligner, "--input", chats),
        "generate": ("generate", target, "--aligner", aligner, "--input", chats, "--max-new-tokens", 2),
        "calibrate": ("calibrate", aligner, "--benign", chats, "--target", target, "--dry-run", "--json"),
        # It ends when it has read the files: three prompts make no gate.
        "fit": (
            "fit",
            target,
            "--aligned",
            target,
            "--harmful",
            chats,
            "--harmless",
            chats,
            "-o",
            tmp_path / "a",
        ),
    }[command]
    outcome = run(*arguments)
    lines = [line for line in outcome.err.splitlines() if "only the last user message" in line]
    assert len(lines) == 1, outcome.err
    assert lines[0].startswith(f"Warning: {chats}: of 3 rows with messages")
    assert "a system prompt in 3 rows" in lines[0]
    assert "Traceback" not in outcome.err
    for line in outcome.out.splitlines() if command in ("score", "generate") else ():
        assert json.loads(line)["prompt"] == CHAT[1]["content"]


def test_evaluate_warns_too(run: Run, target: Path, aligner: Path, chats: Path, tmp_path: Path) -> None:
    outcome = run(
        "evaluate", target, "--aligner", aligner, "-s", f"harmful={chats}", "-m", "none",
        "-o", tmp_path / "out", "--max-new-tokens", 2,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("only the last user message") == 1, outcome.err


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("qa.jsonl", '{"question": "Who?", "options": {"A": "x"}}', ("line 1", "'question'", "'options'")),
        ("rows.csv", "id,prompt\n1,a\n2, \n", ("line 3", "column 'prompt'", "empty")),
        ("chat.csv", "messages\n\"[{'role': 'user'}]\"\n", ("line 2", "column 'messages'", "json.dumps")),
        ("rows.parquet", "PAR1", ("pandas.read_parquet",)),
        ("rows.jsonl", '{"prompt": 3}', ("line 1", "column 'prompt'", "JSON number")),
    ],
)
@pytest.mark.parametrize("command", ["score", "generate", "calibrate", "fit", "evaluate"])
def test_errors_name_the_file_the_row_and_the_column(
    run: Run,
    target: Path,
    aligner: Path,
    tmp_path: Path,
    command: str,
    name: str,
    content: str,
    words: tuple[str, ...],
) -> None:
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    arguments = {
        "score": ("score", target, "--aligner", aligner, "--input", file),
        "generate": ("generate", target, "--aligner", aligner, "--input", file),
        "calibrate": ("calibrate", aligner, "--benign", file),
        "fit": ("fit", target, "--benign", file, "-o", tmp_path / "a"),
        "evaluate": (
            "evaluate",
            target,
            "--aligner",
            aligner,
            "-s",
            f"harmful={file}",
            "-o",
            tmp_path / "out",
        ),
    }[command]
    refused(run(*arguments), str(file), *words)
