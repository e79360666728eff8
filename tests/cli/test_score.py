from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from inferaligner.aligner import Aligner
from inferaligner.method.decision import Decision
from tests.support.command_line import Run, refused
from tests.support.tiny_aligner import PROMPTS
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PromptFile = Callable[..., Path]


def test_one_json_line_per_prompt_in_order(
    run: Run, target: Path, aligner: Path, prompt_file: PromptFile
) -> None:
    outcome = run("score", target, "--aligner", aligner, "--input", prompt_file(*PROMPTS))
    assert outcome.code == 0, outcome.err
    rows = outcome.rows()
    assert [row["prompt"] for row in rows] == PROMPTS
    assert all(list(row) == ["prompt", "score", "open"] for row in rows)
    assert {row["open"] for row in rows} == {True, False}
    assert all(row["open"] == (row["score"] > 0) for row in rows)
    expected = Aligner.from_pretrained(aligner).score(tiny_model(), tiny_tokenizer(), PROMPTS)
    assert [row["score"] for row in rows] == pytest.approx(
        [decision.score for decision in expected], abs=1e-5
    )


def test_written_to_a_file_nothing_is_on_stdout(
    run: Run, target: Path, aligner: Path, prompt_file: PromptFile, tmp_path: Path
) -> None:
    output = tmp_path / "scores.jsonl"
    output.write_text("from an earlier run\n")
    outcome = run("score", target, "-a", aligner, "-i", prompt_file(*PROMPTS), "-o", output)
    assert (outcome.code, outcome.out) == (0, "")
    assert "5 prompts scored" in outcome.err
    assert [json.loads(line)["prompt"] for line in output.read_text().splitlines()] == PROMPTS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["prompts.txt", "scores.jsonl"]


def test_a_nan_score_is_open_and_still_json(
    run: Run, target: Path, aligner: Path, prompt_file: PromptFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Aligner, "score", lambda *_, **__: [Decision(float("nan"), True)])
    outcome = run("score", target, "-a", aligner, "-i", prompt_file("one"))
    assert outcome.rows() == [{"prompt": "one", "score": None, "open": True}]


def test_text_outside_ascii_comes_through(
    run: Run, target: Path, aligner: Path, prompt_file: PromptFile
) -> None:
    prompts = ["Wie bäckt man Brot? 🍞", "为什么天空是蓝色的？"]
    outcome = run("score", target, "-a", aligner, "-i", prompt_file(*prompts))
    assert [row["prompt"] for row in outcome.rows()] == prompts


def test_the_prompt_file_is_not_written_over(
    run: Run, target: Path, aligner: Path, prompt_file: PromptFile, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt\nhello\n")
    refused(
        run("score", target, "-a", aligner, "-i", f"{file}:prompt", "-o", file), "is the prompt file itself"
    )
    assert file.read_text() == "prompt\nhello\n"


def test_a_prompt_longer_than_the_context_is_refused(
    run: Run, target: Path, aligner: Path, prompt_file: PromptFile
) -> None:
    outcome = run("score", target, "-a", aligner, "-i", prompt_file("short", "long " * 400))
    assert outcome.code == 2
    assert "Prompt 2" in outcome.err and outcome.out == ""


def test_the_system_prompt_of_the_fit_is_used(
    run: Run, target: Path, tmp_path: Path, prompt_file: PromptFile
) -> None:
    from tests.support.tiny_aligner import tiny_aligner

    model, tokenizer = tiny_model(), tiny_tokenizer()
    plain = tiny_aligner(model, tokenizer, spec="a")
    with_system = tiny_aligner(model, tokenizer, system="Answer in one word.", spec="b")
    with_system.artifact.gate.weights.copy_(plain.artifact.gate.weights)
    place = with_system.save_pretrained(tmp_path / "system")
    rows = run("score", target, "-a", place, "-i", prompt_file(*PROMPTS)).rows()
    expected = with_system.score(model, tokenizer, PROMPTS)
    assert [row["score"] for row in rows] == pytest.approx([d.score for d in expected], abs=1e-5)
    assert not torch.allclose(
        torch.tensor([d.score for d in expected]) - with_system.artifact.gate.bias,
        torch.tensor([d.score for d in plain.score(model, tokenizer, PROMPTS)]) - plain.artifact.gate.bias,
    )
