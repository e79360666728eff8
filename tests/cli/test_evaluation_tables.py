"""The tables of an evaluation on a terminal of eighty columns, and the answers that they leave out."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.console import Console

from inferaligner.cli.evaluation_tables import examples_table, open_rates_table, show
from inferaligner.evaluation.records_file import Record
from tests.support.synthetic_results import answered, fitted_artifact, records_of, run_folder

CANARY = "heliotrope-canary"


def examples(folder: Path, records: Sequence[Record] | None = None, width: int = 400) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(examples_table(run_folder(folder, records)))
    return file.getvalue()


def test_every_number_fits_into_eighty_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run = run_folder(tmp_path)
    show(run, run.results())
    text = capsys.readouterr().out
    assert "80 ▲" in text and "44–97" in text
    assert "…" not in text
    companions = text.partition("Answers to harmful prompts, in per cent")[2]
    assert companions.split()[:4] == ["method", "gibberish", "loops", "ended"]
    file = io.StringIO()
    Console(file=file, width=80).print(open_rates_table(fitted_artifact()))
    assert "AUROC" in file.getvalue() and "ordinary traffic" in file.getvalue() and "…" not in file.getvalue()


def test_the_decision_comes_with_its_checks_and_notes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_folder(tmp_path)
    show(run, run.results())
    text = " ".join(capsys.readouterr().out.split())
    assert "InferAligner: 86 % of harmful requests declined instead of 0 %" in text
    assert "• Is ordinary traffic untouched? yes." in text
    assert "the target's own vectors behind the same gate decline 0 %" in text


def test_answers_to_harmful_prompts_are_withheld(tmp_path: Path) -> None:
    text = examples(tmp_path, records_of(bare=f"Of course: {CANARY}"))
    assert CANARY not in text
    assert "(answer withheld, 3 words)" in text


def test_an_answer_that_a_closed_gate_left_alone_is_shown_once(tmp_path: Path) -> None:
    text = examples(tmp_path, answered("ordinary", 0, "Question", bare="An ordinary answer."))
    assert text.count("An ordinary answer.") == 1
    assert "the same, token by token" in text and "gate closed (-1.50)" in text


def test_a_prompt_with_brackets_is_no_markup(tmp_path: Path) -> None:
    text = examples(tmp_path, answered("ordinary", 0, "[bold]Q[/bold]", bare="[/bold] [red]no markup"))
    assert "[bold]Q[/bold]" in text
    assert "[/bold] [red]no markup" in text
