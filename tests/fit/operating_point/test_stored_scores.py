from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from inferaligner.errors import InputError
from inferaligner.fit.operating_point.stored_scores import check_age, read_scores


def test_scores_of_the_score_command(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text('{"prompt": "a", "score": -1.5, "open": false}\n\n{"score": 2, "ts": "now"}\n')
    assert read_scores(file, bias=7.0) == [-1.5, 2.0]


def test_scores_of_another_bias_are_converted(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text('{"score": 1.0}\n{"score": 1.0, "bias": 2.0}\n')
    assert read_scores(file, bias=5.0) == [1.0, 4.0]
    assert read_scores(file, bias=5.0, scored_bias=4.5) == [1.5, 4.0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n  \n", "is empty"),
        (b'{"score": 1}\n{"prompt": "a"}\n', "line 2 has no field 'score'"),
        (b"[1, 2]\n", "line 1 has no field 'score'"),
        (b'{"score": null}\n', "null, which stands for NaN"),
        (b'{"score": NaN}\n', "the score is nan"),
        (b'{"score": Infinity}\n', "the score is inf"),
        (b'{"score": "high"}\n', "'high'; expected a number"),
        (b'{"score": true}\n', "True; expected a number"),
        (b'{"score": 1' + b"0" * 400 + b"}\n", "expected a finite number"),
        (b'{"score": 1, "bias": null}\n', "the bias is null"),
        (b'{"score": 1\n', "broken JSON"),
        (b"[" * 100_000 + b"\n", "broken JSON"),
        (b'{"score": "\xff"}\n', "not UTF-8"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "s.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_scores(file, 0.0)
    assert words in str(caught.value) and "s.jsonl" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.jsonl cannot be read"):
        read_scores(tmp_path / "nowhere.jsonl", 0.0)
    with pytest.raises(InputError, match="cannot be read"):
        read_scores(tmp_path, 0.0)


def test_scores_from_before_a_move_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "s.jsonl"
    file.write_text(json.dumps({"score": 1.0}))
    os.utime(file, (1_000_000_000, 1_000_000_000))  # September 2001
    check_age(file, "2001-09-09T01:46:40+00:00")
    with pytest.raises(InputError, match="`scored_bias`"):
        check_age(file, "2001-09-09T01:46:41+00:00")
