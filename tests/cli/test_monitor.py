"""The monitor on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import Run
from tests.support.tiny_aligner import CALIBRATION, PROMPTS, eager_monitor, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

RATE = {"value": 0.5, "low": 0.25, "high": 0.75, "n": 12}
FIGURES = {
    "tokens": 40,
    "tried": 36,
    "candidates": [{"kind": "whitened-0.3", "layer": 1, "window": 2, "auroc": 0.9, "true_open": 0.6}],
    "operating_point": None,
    "held_out": {"answers to [ordinary] prompts": RATE},
}


@pytest.fixture(scope="module")
def watching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "watching"
    calibration = {**CALIBRATION, "monitor": FIGURES}
    aligner = tiny_aligner(tiny_model(), tiny_tokenizer(), monitor=eager_monitor(), calibration=calibration)
    return aligner.save_pretrained(folder)


def test_generate_tells_where_a_row_opened(run: Run, target: Path, watching: Path, tmp_path: Path) -> None:
    source = tmp_path / "prompts.txt"
    source.write_text("\n".join(PROMPTS), encoding="utf-8")
    ask = ("generate", target, "-a", watching, "-i", source, "--max-new-tokens", 6)
    rows = run(*ask).rows()
    assert {row["opened_at"] for row in rows} == {"prompt", 2}
    assert all(row["open"] for row in rows)
    off = run(*ask, "--no-monitor").rows()
    assert {row["open"] for row in off} == {True, False}
    assert "opened_at" not in off[0]


def test_inspect_shows_it(run: Run, watching: Path) -> None:
    shown = run("inspect", watching)
    assert shown.code == 0, shown.err
    for words in ("Monitors compared", "answers to [ordinary] prompts", "25.0 % to 75.0 %", "60.0 %"):
        assert words in shown.out, words
    told = run("inspect", watching, "--json").json()["monitor"]
    assert (told["layer"], told["window"], told["tokens"]) == (1, 2, 40)
    assert told["held_out"] == FIGURES["held_out"]


def test_chat_tells_that_an_answer_was_steered_on_the_way(run: Run, target: Path, watching: Path) -> None:
    turns = "".join(f"{prompt}\n/reset\n" for prompt in PROMPTS)
    outcome = run("chat", target, "--aligner", watching, "--max-new-tokens", 4, stdin=turns)
    assert outcome.code == 0, outcome.err
    assert "the monitor steered this answer from token 2 on" in outcome.out


def test_a_monitor_does_not_go_with_a_refusal(run: Run, target: Path, watching: Path) -> None:
    ask = ("generate", target, "-a", watching, "-p", PROMPTS[0], "--max-new-tokens", 3, "--on-open", "refuse")
    for outcome in (run(*ask), run("chat", target, "-a", watching, "--on-open", "refuse")):
        assert outcome.code == 2 and "--no-monitor" in outcome.err
    [row] = run(*ask, "--no-monitor").rows()
    assert "opened_at" not in row


def test_chat_without_the_monitor(run: Run, target: Path, watching: Path) -> None:
    turns = "".join(f"{prompt}\n/reset\n" for prompt in PROMPTS)
    outcome = run("chat", target, "-a", watching, "--max-new-tokens", 4, "--no-monitor", stdin=turns)
    assert outcome.code == 0 and "the monitor steered" not in outcome.out


def test_a_gate_alone_has_no_monitor(run: Run, target: Path, tmp_path: Path) -> None:
    outcome = run("fit", target, "-o", tmp_path / "a", "--monitor")
    assert outcome.code == 2 and "--monitor" in outcome.err and "--aligned" in outcome.err


def test_monitor_tokens_must_be_some(run: Run, target: Path, tmp_path: Path) -> None:
    outcome = run(
        "fit", target, "--aligned", target, "-o", tmp_path / "a", "--monitor", "--monitor-tokens", 0
    )
    assert outcome.code == 2 and "monitor-tokens" in outcome.err
