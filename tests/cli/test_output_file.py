from __future__ import annotations

import os
from pathlib import Path

import pytest

from inferaligner.cli.output_file import check_output_file, write_lines
from inferaligner.errors import InputError


def test_lines_replace_what_was_there(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("old and much longer than the new content\n" * 10)
    write_lines(file, [{"a": "ö"}, {"a": float("nan")}])
    assert file.read_text(encoding="utf-8") == '{"a": "ö"}\n{"a": null}\n'


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("old\n")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left on device"):
        write_lines(file, [{"a": 1}])
    assert file.read_text() == "old\n"
    assert os.listdir(tmp_path) == ["rows.jsonl"]


def test_half_a_surrogate_pair_does_not_stop_the_writing(tmp_path: Path) -> None:
    write_lines(tmp_path / "rows.jsonl", [{"a": "\ud800"}])
    assert (tmp_path / "rows.jsonl").read_text() == '{"a": "\\ud800"}\n'


def test_checking_leaves_nothing_behind(tmp_path: Path) -> None:
    check_output_file(tmp_path / "new.jsonl")
    assert os.listdir(tmp_path) == []


def test_checking_does_not_change_a_file(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("old\n")
    check_output_file(file, source="rows.jsonl:prompt")
    assert file.read_text() == "old\n"


def test_the_source_is_recognised_through_a_link(tmp_path: Path) -> None:
    file, link = tmp_path / "rows.csv", tmp_path / "link.csv"
    file.write_text("prompt\nhello\n")
    link.symlink_to(file)
    with pytest.raises(InputError, match="the prompt file itself"):
        check_output_file(link, source=f"{file}:prompt")
