from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferaligner.cli import answers_file
from inferaligner.cli.answer_panels import show
from inferaligner.models.generation import generate_answers
from inferaligner.steering.gate_choices import REFUSAL
from tests.support.command_line import Run, refused
from tests.support.tiny_aligner import PROMPTS, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PromptFile = Callable[..., Path]
SHORT = ("--max-new-tokens", 6)


@pytest.fixture
def source(prompt_file: PromptFile) -> Path:
    return prompt_file(*PROMPTS)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_one_prompt(run: Run, target: Path, aligner: Path) -> None:
    outcome = run("generate", target, "--aligner", aligner, "--prompt", PROMPTS[0], *SHORT)
    assert outcome.code == 0, outcome.err
    (row,) = outcome.rows()
    assert list(row) == ["prompt", "response", "score", "open"]
    assert row["prompt"] == PROMPTS[0] and isinstance(row["response"], str)
    assert row["open"] == (row["score"] > 0)


def test_answers_are_the_guards_and_closed_rows_the_bare_models(
    run: Run, target: Path, aligner: Path, source: Path
) -> None:
    outcome = run("generate", target, "-a", aligner, "-i", source, "--compare", *SHORT)
    rows = outcome.rows()
    assert [row["prompt"] for row in rows] == PROMPTS
    assert list(rows[0]) == ["prompt", "response", "unaligned_response", "score", "open"]
    model, tokenizer = tiny_model(), tiny_tokenizer()
    bare = {a.row: a.text for a in generate_answers(model, tokenizer, PROMPTS, max_new_tokens=6)}
    assert [row["unaligned_response"] for row in rows] == [bare[number] for number in range(len(PROMPTS))]
    assert {row["open"] for row in rows} == {True, False}
    for row in rows:
        assert (row["response"] != row["unaligned_response"]) == row["open"]


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_any_batch_size_gives_the_same_answers_in_order(
    run: Run, target: Path, aligner: Path, source: Path, batch_size: int
) -> None:
    whole = run("generate", target, "-a", aligner, "-i", source, "--compare", *SHORT).rows()
    split = run(
        "generate", target, "-a", aligner, "-i", source, "--compare", *SHORT, "--batch-size", batch_size
    ).rows()
    for one, other in zip(whole, split, strict=True):
        assert one.pop("score") == pytest.approx(other.pop("score"), abs=1e-5)
        assert one == other


def test_without_an_open_row_the_bare_model_is_not_asked_again(
    run: Run, target: Path, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tiny_aligner(tiny_model(), tiny_tokenizer())
    folder = tmp_path / "closed"
    from dataclasses import replace

    from inferaligner.aligner import Aligner

    artifact = replace(closed.artifact, gate=closed.artifact.gate.with_bias(-1e9))
    Aligner(artifact).save_pretrained(folder)
    calls = []
    original = generate_answers

    def counted(*arguments: Any, **options: Any) -> Any:
        calls.append(options)
        return original(*arguments, **options)

    monkeypatch.setattr("inferaligner.models.generation.generate_answers", counted)
    rows = run("generate", target, "-a", folder, "-i", source, "--compare", *SHORT).rows()
    assert len(calls) == 1
    assert all(row["response"] == row["unaligned_response"] and not row["open"] for row in rows)


def test_an_interrupted_run_is_continued(
    run: Run, target: Path, aligner: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = (
        "generate",
        target,
        "-a",
        aligner,
        "-i",
        source,
        "--compare",
        *SHORT,
        "--batch-size",
        2,
        "-o",
    )
    whole = tmp_path / "whole.jsonl"
    assert run(*arguments, whole).code == 0
    original = answers_file.AnswersFile.append

    def interrupted(self: Any, rows: Any) -> None:
        if self.finished:
            raise KeyboardInterrupt
        original(self, rows)

    output = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(answers_file.AnswersFile, "append", interrupted)
        assert run(*arguments, output).code == 130
    assert [row["prompt"] for row in lines(output)] == PROMPTS[:2]
    outcome = run(*arguments, output)
    assert (outcome.code, outcome.out) == (0, "")
    assert "2 of 5 answers are there already" in outcome.err
    assert output.read_bytes() == whole.read_bytes()
    outcome = run(*arguments, output)
    assert "nothing to do" in outcome.err


def test_another_runs_file_is_refused_unless_overwritten(
    run: Run, target: Path, aligner: Path, source: Path, prompt_file: PromptFile, tmp_path: Path
) -> None:
    output = tmp_path / "answers.jsonl"
    start = ("generate", target, "-a", aligner, "-o", output, *SHORT)
    assert run(*start, "-i", source).code == 0
    before = output.read_bytes()
    refused(run(*start, "-p", "something else"), "another prompt", "--overwrite")
    refused(run(*start, "-i", source, "--compare"), "another compare", "--overwrite")
    other = tiny_aligner(tiny_model(), tiny_tokenizer(), seed=5).save_pretrained(tmp_path / "other")
    refused(run("generate", target, "-a", other, "-o", output, *SHORT, "-i", source), "another aligner")
    foreign = tmp_path / "thesis.txt"
    foreign.write_text("mine\n")
    refused(run("generate", target, "-a", aligner, "-i", source, "-o", foreign), "--overwrite")
    assert foreign.read_text() == "mine\n"
    assert output.read_bytes() == before
    assert run(*start, "-p", "something else", "--overwrite").code == 0
    assert [row["prompt"] for row in lines(output)] == ["something else"]


def test_a_prompt_too_long_is_told_by_its_place_before_any_answer(
    run: Run, target: Path, aligner: Path, prompt_file: PromptFile, tmp_path: Path
) -> None:
    file = prompt_file("short", "also short", "long " * 400)
    output = tmp_path / "answers.jsonl"
    outcome = run("generate", target, "-a", aligner, "-i", file, "-o", output, "--batch-size", 1)
    refused(outcome, "Prompt 3")
    assert not output.exists()


def test_panels_show_the_gate_and_take_text_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"prompt": "a [bold]", "response": "b [/bold]", "score": 1.234, "open": True}
    show({**row, "unaligned_response": "bare"})
    told = capsys.readouterr().out
    for words in ("a [bold]", "b [/bold]", "gate open (+1.23)", "without the aligner", "bare"):
        assert words in told
    show({**row, "score": -2.0, "open": False, "unaligned_response": "b [/bold]"})
    told = capsys.readouterr().out
    assert "gate closed (-2.00)" in told and "without the aligner" not in told


def test_open_prompts_are_answered_with_the_refusal_and_nothing_else_changes(
    run: Run, target: Path, aligner: Path, source: Path, tmp_path: Path
) -> None:
    text = "I will not."
    start = ("generate", target, "-a", aligner, "-i", source, *SHORT)
    steered = run(*start, "--compare").rows()
    refusing = run(*start, "--compare", "--on-open", "refuse", "--refusal", text).rows()
    assert {row["open"] for row in refusing} == {True, False}
    for one, other in zip(refusing, steered, strict=True):
        assert one["open"] == other["open"]
        assert one["response"] == (text if one["open"] else other["unaligned_response"])
        assert one["unaligned_response"] == other["unaligned_response"]
    file = tmp_path / "a.jsonl"
    assert run(*start, "--on-open", "refuse", "-o", file).code == 0
    assert {row["response"] for row in lines(file) if row["open"]} == {REFUSAL}
    # Another text is another run.
    refused(run(*start, "--on-open", "refuse", "--refusal", text, "-o", file), "--overwrite")


def test_refusals_that_cannot_be(run: Run, target: Path, aligner: Path, source: Path) -> None:
    start = ("generate", target, "-a", aligner, "-i", source)
    refused(run(*start, "--refusal", "No."), "without --on-open refuse")
    refused(run(*start, "--on-open", "refuse", "--refusal", " "), "--refusal is empty")
    refused(run(*start, "--on-open", "refuse", "--refusal", "No<|im_end|>"), "special tokens")
