"""`evaluate` on tiny models: everything but the weights is real."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import Run, refused
from tests.support.tiny_aligner import PROMPTS, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

pytest.importorskip("matplotlib")

METHODS = ["-m", "inferaligner", "-m", "own-vectors", "-m", "self-reminder"]


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny target with a long context, an aligner, and prompts of every kind."""
    root = tmp_path_factory.mktemp("evaluate")
    model, tokenizer = tiny_model("llama", max_position_embeddings=1024), tiny_tokenizer()
    model.save_pretrained(root / "target")
    tokenizer.save_pretrained(root / "target")
    tiny_aligner(model, tokenizer).save_pretrained(root / "aligner")
    prompts = [f"{number} {prompt}" for number in range(4) for prompt in PROMPTS]
    (root / "asked.txt").write_text("\n".join(prompts))
    (root / "calm.txt").write_text("\n".join(prompts[::2]))
    rows = [{"prompt": p, "answer": "yes", "choices": ["yes", "no"], "domain": p[:1]} for p in prompts]
    (root / "quiz.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: root / name for name in ("target", "aligner", "asked.txt", "calm.txt", "quiz.jsonl")}


def arguments(places: dict[str, Path], out: Path) -> list[object]:
    suites = [
        f"harmful={places['asked.txt']}",
        f"benign={places['calm.txt']}",
        f"utility={places['quiz.jsonl']}",
    ]
    named = [part for suite in suites for part in ("-s", suite)]
    fixed = ["--aligner", places["aligner"], "--max-new-tokens", 4, "--batch-size", 4]
    return ["evaluate", places["target"], *fixed, *named, *METHODS, "-o", out]


def kept(folder: Path) -> tuple[Any, Any]:
    """Records in order, and every result that is no time."""
    records = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    records.sort(key=lambda r: (r["method"], r["suite"], r["row"]))
    rows = json.loads((folder / "results.json").read_text())
    return records, [row for row in rows if not row["suite"].startswith("inference time")]


def test_a_whole_evaluation(run: Run, places: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = run(*arguments(places, out), "--json")
    assert done.code == 0, done.err
    rows = done.json()["results"]
    assert rows == json.loads((out / "results.json").read_text())
    columns = {"method", "suite", "metric", "value", "low", "high", "n", "judge", "max_new_tokens"}
    assert all(set(row) == columns for row in rows)
    by = {(r["method"], r["suite"], r["metric"]): r for r in rows}
    assert by["inferaligner", "benign: calm", "closed and identical"]["value"] == 1.0
    assert 0 < by["inferaligner", "utility: quiz", "gate open"]["value"] < 1
    assert ("inferaligner", "harmful / harmless", "gate AUROC") in by
    for state in ("open", "closed"):
        assert by["inferaligner", f"inference time, {state}", "seconds per 1,000 tokens"]["value"] > 0
    assert by["none", "inference time", "seconds to the first token"]["n"] > 0

    page = (out / "report.html").read_text()
    assert "://" not in re.sub(r"http://www\.w3\.org/\S+", "", page)
    for figure in ("scores", "roc", "outcomes-0", "tradeoff", "time", "first", "open"):
        assert f'id="{figure}-title"' in page
    records, _ = kept(out)
    for record in records:
        if record["kind"] == "harmful" and record["outcome"] != "refusal":
            longer = " ".join(record["response"].split())
            assert len(longer) <= 110 or longer not in page

    again = run(*arguments(places, out), "--json")
    assert again.code == 0 and again.json()["results"] == rows
    refused(run(*arguments(places, out), "--max-new-tokens", 5), "other max new tokens")
    shown = run(*arguments(places, out))
    assert shown.code == 0 and "Methods and suites" in shown.out and "Judge: rules" in shown.out


@pytest.mark.slow
def test_a_killed_run_is_continued_to_the_same_results(
    run: Run, places: dict[str, Path], tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(*arguments(places, whole), "--no-timing").code == 0
    command = [
        sys.executable,
        "-m",
        "inferaligner.cli.main",
        *map(str, arguments(places, killed)),
        "--no-timing",
    ]
    process = subprocess.Popen(command, env={**os.environ, "COLUMNS": "200"})
    total = len((whole / "records.jsonl").read_bytes())
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        file = killed / "records.jsonl"
        if file.exists() and file.stat().st_size > total // 4:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.01)
    assert process.wait() == -signal.SIGKILL
    size = (killed / "records.jsonl").stat().st_size
    assert 0 < size < total and not (killed / "results.json").exists()
    assert run(*arguments(places, killed), "--no-timing").code == 0
    assert kept(killed) == kept(whole)


def test_lists_what_there_is(run: Run) -> None:
    done = run("evaluate", "--list")
    assert done.code == 0
    for name in ("contrast-harmful", "gsm8k", "goal-priority", "cast"):
        assert name in done.out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["-s", "nonsense"], ["no suite"]),
        (["-m", "nonsense"], ["no method"]),
        (["-s", "advbench"], ["--data", "https://"]),
        (["-m", "always"], ["--aligner"]),
        (["--prompt-file", "/nowhere.txt"], ["does not exist"]),
        (["-s", "harmful=/nowhere.txt"], ["does not exist"]),
    ],
)
def test_bad_input(
    run: Run, places: dict[str, Path], tmp_path: Path, more: list[str], words: list[str]
) -> None:
    refused(run("evaluate", places["target"], "-o", tmp_path / "out", "--limit", 2, *more), *words)
