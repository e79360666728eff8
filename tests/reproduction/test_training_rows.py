"""What a domain model is trained on: as much as asked for, apart from tests and from what is put aside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reproduction.corpora.catalogue import named
from reproduction.safety_rows import safety_rows
from reproduction.training_rows import BENIGN, RECORD, TRAIN, mix, read_rows

from inferaligner.errors import InputError


def test_rows_are_trained_on_or_put_aside_never_both(tmp_path: Path) -> None:
    counts = {"single-step": 8, "gsm8k": 4, "alpaca": 5}
    told = mix(counts, {}, tmp_path, data=None, benign=8, seed=0, examples=True)
    trained, aside = (read_rows(tmp_path / name) for name in (TRAIN, BENIGN))
    assert (len(trained), told["rows"]) == (17, 17)
    assert (len(aside), told["benign"]) == (8, 8)
    assert not {row.prompt for row in trained} & {row.prompt for row in aside}
    general = {row.prompt for row in named("alpaca").examples()}
    assert not general & {row.prompt for row in aside}
    assert json.loads((tmp_path / RECORD).read_text())["corpora"]["gsm8k"]["trained"] == 4


def test_all_rows_leave_some_for_the_gate(tmp_path: Path) -> None:
    mix({"gsm8k": "all"}, {}, tmp_path, data=None, benign=3, seed=0, examples=True)
    assert len(read_rows(tmp_path / TRAIN)) == len(named("gsm8k").examples()) - 3
    assert len(read_rows(tmp_path / BENIGN)) == 3


def test_test_prompts_are_kept_out_and_counted(tmp_path: Path) -> None:
    tests = {"mine": [row.prompt for row in named("gsm8k").examples()[:1]]}
    told = mix({"gsm8k": "all"}, tests, tmp_path, data=None, benign=0, seed=0, examples=True)
    assert told["corpora"]["gsm8k"]["left_out"]["mine"] == 6
    assert not set(tests["mine"]) & {row.prompt for row in read_rows(tmp_path / TRAIN)}
    assert told["tests"] == {"mine": 1}


def test_the_same_seed_gives_the_same_rows(tmp_path: Path) -> None:
    files = []
    for number, seed in enumerate((0, 0, 1)):
        mix({"single-step": 8}, {}, tmp_path / str(number), data=None, benign=2, seed=seed, examples=True)
        files.append((tmp_path / str(number) / TRAIN).read_text())
    assert files[0] == files[1] != files[2]


def test_more_rows_than_there_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1000 rows of gsm8k"):
        mix({"gsm8k": 1000}, {}, tmp_path, data=None, benign=0, seed=0, examples=True)


def test_safety_samples_decline_and_are_no_test_prompts() -> None:
    from inferaligner.evaluation.suites.catalogue import load
    from inferaligner.judges.rules import judge

    (subset,) = load(["contrast-harmful"], data=None, limit=10_000)
    asked = [item.prompt for item in subset.items]
    rows, found = safety_rows(100, {"contrast-harmful": asked}, seed=0)
    assert len(rows) == len({row.prompt for row in rows}) == 100
    assert not {row.prompt for row in rows} & set(asked)
    assert all(judge(row.answer).outcome == "refusal" for row in rows)
    assert found.kept <= found.rows


def test_more_safety_samples_than_there_are() -> None:
    with pytest.raises(InputError, match="100000 safety samples"):
        safety_rows(100_000, {}, seed=0)
