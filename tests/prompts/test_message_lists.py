"""Messages in files: lists and JSON text alike, both public forms, and a warning for what is left out."""

from __future__ import annotations

import csv
import json
import warnings
from pathlib import Path
from typing import Any

import pytest

from inferaligner.errors import InferAlignerWarning, InputError
from inferaligner.prompts.prompt_files import read_prompts

USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "Hi."}


def table(folder: Path, column: str, *cells: str) -> Path:
    path = folder / "chat.csv"
    with path.open("w", encoding="utf-8", newline="") as out:
        csv.writer(out).writerows([[column], *([cell] for cell in cells)])
    return path


def read_without_warning(spec: str) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return list(read_prompts(spec))


@pytest.mark.parametrize("column", ["messages", "conversations", "prompt", "Messages"])
def test_json_text_is_read_as_a_list_is(tmp_path: Path, column: str) -> None:
    path = table(tmp_path, column, json.dumps([USER]), json.dumps([USER, ANSWER]))
    assert read_without_warning(str(path)) == ["hello", "hello"]
    jsonl = tmp_path / "chat.jsonl"
    jsonl.write_text(json.dumps({column: json.dumps([USER])}) + "\n" + json.dumps({column: [USER, ANSWER]}))
    assert read_without_warning(str(jsonl)) == ["hello", "hello"]


def test_a_column_that_is_asked_for_by_another_name_stays_text(tmp_path: Path) -> None:
    text = json.dumps([USER])
    assert read_without_warning(f"{table(tmp_path, 'prompt', text)}:prompt") == [text]
    assert read_without_warning(f"{table(tmp_path, 'messages', text)}:messages") == ["hello"]


@pytest.mark.parametrize("text", ["[1, 2] is a list", '["a"]', "[]", '[{"a": 1}]', '{"role": "user"}'])
def test_other_brackets_in_a_prompt_stay_text(tmp_path: Path, text: str) -> None:
    assert read_without_warning(str(table(tmp_path, "prompt", text))) == [text]


def test_messages_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    path = table(tmp_path, "messages", str([USER]))  # as pandas writes a list
    with pytest.raises(
        InputError, match=r"line 2, column 'messages': expected a list of messages in JSON.*json\.dumps"
    ):
        read_prompts(str(path))
    with pytest.raises(InputError, match="column 'messages': no message of the role 'user' among 1"):
        read_prompts(str(table(tmp_path, "messages", json.dumps([ANSWER]))))
    assert read_prompts(str(table(tmp_path, "messages", "plain text"))) == ["plain text"]


SHAREGPT = [
    {"from": "human", "value": "first"},
    {"from": "gpt", "value": "a"},
    {"from": "human", "value": "second"},
]


@pytest.mark.parametrize(
    ("messages", "prompt", "left_out"),
    [
        ([USER, ANSWER], "hello", None),
        ([{"role": "system", "content": ""}, USER], "hello", None),
        ([{"role": "system", "content": "s"}, USER], "hello", "a system prompt in 1 row."),
        ([{"role": "developer", "content": "s"}, USER], "hello", "a system prompt in 1 row."),
        ([USER, ANSWER, {"role": "user", "content": "more"}], "more", "earlier turns in 1 row."),
        ([USER, ANSWER, {"role": "tool", "content": "7"}], "hello", "results of tools in 1 row."),
        (SHAREGPT, "second", "earlier turns in 1 row."),
        (SHAREGPT[:2], "first", None),
        ([{"from": "human", "value": "q"}, {"from": "agent", "value": "a"}], "q", None),  # PIXIU
    ],
)
def test_what_is_left_out_is_counted(
    tmp_path: Path, messages: list[dict[str, str]], prompt: str, left_out: str | None
) -> None:
    path = tmp_path / "chat.jsonl"
    path.write_text(json.dumps({"conversations": messages}) + "\n" + json.dumps({"conversations": [USER]}))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert read_prompts(str(path)) == [prompt, "hello"]
    found = [str(warning.message) for warning in caught if warning.category is InferAlignerWarning]
    if left_out is None:
        assert not found
    else:
        assert len(found) == 1
        assert found[0].startswith(f"{path}: of 2 rows with messages only the last user message is read")
        assert left_out in found[0]
