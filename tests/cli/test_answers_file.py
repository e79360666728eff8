from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferaligner.cli.answers_file import AnswersFile
from inferaligner.errors import InputError

RUN = {"aligner": "abc", "target": "t", "temperature": None}
PROMPTS = ["one", "two", "three"]


def row(prompt: str) -> dict[str, object]:
    return {"prompt": prompt, "response": "ß"}


def started(file: Path, count: int) -> AnswersFile:
    answers = AnswersFile(file, RUN, PROMPTS, overwrite=False)
    answers.open()
    answers.append([row(prompt) for prompt in PROMPTS[:count]])
    return answers


def test_finished_rows_are_found_again(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    started(file, 2)
    again = AnswersFile(file, RUN, PROMPTS, overwrite=False)
    assert again.finished == 2 and again.rows == [row("one"), row("two")]
    again.open()
    again.append([row("three")])
    assert [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] == [
        row(prompt) for prompt in PROMPTS
    ]


def test_more_prompts_may_follow(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    started(file, 3)
    assert AnswersFile(file, RUN, [*PROMPTS, "four"], overwrite=False).finished == 3


@pytest.mark.parametrize("torn", [b'{"prompt": "thr', b'{"prompt": "three", "response": "\xc3', b"{"])
def test_a_torn_line_is_dropped(tmp_path: Path, torn: bytes) -> None:
    file = tmp_path / "a.jsonl"
    started(file, 2)
    whole = file.read_bytes()
    file.write_bytes(whole + torn)
    again = AnswersFile(file, RUN, PROMPTS, overwrite=False)
    assert again.finished == 2
    assert file.read_bytes() == whole + torn  # nothing is changed before the run begins
    again.open()
    assert file.read_bytes() == whole


def test_a_torn_first_line_is_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    started(file, 0)
    file.write_bytes(b'{"prompt"')
    again = AnswersFile(file, RUN, PROMPTS, overwrite=False)
    again.open()
    assert (again.finished, file.read_bytes()) == (0, b"")


def test_an_empty_file_is_begun(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.touch()
    assert AnswersFile(file, RUN, PROMPTS, overwrite=False).finished == 0


@pytest.mark.parametrize(
    ("prompts", "words"),
    [
        (["one", "another"], "line 2 answers another prompt"),
        (["two", "one"], "line 1 answers another prompt"),
        (["one"], "line 2 answers another prompt"),
    ],
)
def test_other_prompts_are_refused(tmp_path: Path, prompts: list[str], words: str) -> None:
    file = tmp_path / "a.jsonl"
    started(file, 2)
    with pytest.raises(InputError, match=f"{words}.*--overwrite"):
        AnswersFile(file, RUN, prompts, overwrite=False)
    assert AnswersFile(file, RUN, prompts, overwrite=True).finished == 0


def test_another_run_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    started(file, 1)
    with pytest.raises(InputError, match=r"another aligner \(abc, now xyz\).*--overwrite"):
        AnswersFile(file, {**RUN, "aligner": "xyz"}, PROMPTS, overwrite=False)


@pytest.mark.parametrize("record", [None, "", "{", "[]"])
def test_a_file_of_unknown_origin_is_refused(tmp_path: Path, record: str | None) -> None:
    file = tmp_path / "a.jsonl"
    started(file, 1)
    beside = tmp_path / "a.jsonl.run.json"
    if record is None:
        beside.unlink()
    else:
        beside.write_text(record)
    with pytest.raises(InputError, match="--overwrite"):
        AnswersFile(file, RUN, PROMPTS, overwrite=False)


@pytest.mark.parametrize("line", ["hello", "[]", "{}", "3"])
def test_lines_that_are_no_answers_are_refused(tmp_path: Path, line: str) -> None:
    file = tmp_path / "a.jsonl"
    started(file, 1)
    with file.open("a") as opened:
        opened.write(line + "\n")
    with pytest.raises(InputError, match=r"line 2 is not an answer.*--overwrite"):
        AnswersFile(file, RUN, PROMPTS, overwrite=False)


def test_overwriting_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    started(file, 2)
    answers = AnswersFile(file, {**RUN, "aligner": "xyz"}, ["other"], overwrite=True)
    answers.open()
    assert file.read_bytes() == b""
    assert json.loads((tmp_path / "a.jsonl.run.json").read_text())["aligner"] == "xyz"
