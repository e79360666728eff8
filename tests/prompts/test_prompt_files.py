"""What is written is read back; what cannot be read says why."""

from __future__ import annotations

import csv
import io
import json
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inferaligner.errors import InferAlignerWarning, InputError, MissingExtraError
from inferaligner.prompts.prompt_files import read_prompts

# Any text that a file can hold: no lone surrogates, no NUL, something besides white space.
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")).filter(
    lambda text: bool(text.strip())
)
lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n")).filter(
    lambda text: bool(text.strip()) and not text.startswith("\ufeff")
)


def write_and_read(name: str, data: bytes, column: str = "") -> list[str]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        return read_prompts(f"{path}{column}")


def table(rows: list[list[str]], delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    csv.writer(out, delimiter=delimiter).writerows(rows)
    return out.getvalue().encode()


@given(st.lists(lines, min_size=1), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_text_lines_come_back(prompts: list[str], end: str, bom: bool, last_end: bool) -> None:
    body = (end + end).join(prompts) + (end if last_end else "")
    assert write_and_read("p.txt", (b"\xef\xbb\xbf" if bom else b"") + body.encode()) == prompts


@given(st.lists(texts, min_size=1), st.booleans(), st.booleans())
@settings(max_examples=50, deadline=None)
def test_json_comes_back(prompts: list[str], escaped: bool, objects: bool) -> None:
    rows: list[object] = [{"id": i, "prompt": p} for i, p in enumerate(prompts)] if objects else list(prompts)
    assert write_and_read("p.json", json.dumps(rows, ensure_ascii=escaped).encode()) == prompts
    body = "\n".join(json.dumps(row, ensure_ascii=escaped) for row in rows)
    assert write_and_read("p.jsonl", body.encode()) == prompts
    if objects:
        assert write_and_read("p.JSONL", body.encode(), ":prompt") == prompts


@given(st.lists(texts, min_size=1), st.booleans())
@settings(max_examples=50, deadline=None)
def test_tables_come_back(prompts: list[str], named: bool) -> None:
    rows = [["id", "Goal"], *([str(i), p] for i, p in enumerate(prompts))]
    assert write_and_read("p.csv", table(rows, ","), ":Goal" if named else "") == prompts
    assert write_and_read("p.tsv", b"\xef\xbb\xbf" + table(rows, "\t"), ":Goal" if named else "") == prompts


@given(st.binary(max_size=60), st.sampled_from([".txt", ".json", ".jsonl", ".csv", ".tsv"]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_give_prompts_or_an_input_error(data: bytes, suffix: str) -> None:
    try:
        prompts = write_and_read("p" + suffix, data)
    except InputError:
        return
    assert prompts
    assert all(prompt.strip() and "\0" not in prompt for prompt in prompts)


def test_default_columns_in_order_and_any_case(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("goal,Instruction,other\ng,i,o\n")
    assert read_prompts(str(path)) == ["i"]
    assert read_prompts(f"{path}:goal") == ["g"]
    path.write_text("PROMPT,prompt\nbig,small\n")
    assert read_prompts(str(path)) == ["small"]


def test_an_existing_file_wins_over_the_column_reading(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt,b.csv\nfrom a,from column\n")
    assert read_prompts(f"{tmp_path}/a.csv:b.csv") == ["from column"]
    (tmp_path / "a.csv:b.csv").write_text("prompt\nfrom the other file\n")
    assert read_prompts(f"{tmp_path}/a.csv:b.csv") == ["from the other file"]
    assert read_prompts(f"{tmp_path}/a.csv:b.csv:prompt") == ["from the other file"]


def test_a_column_name_may_hold_colons(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("meta:text,x\nhello,1\n")
    assert read_prompts(f"{tmp_path}/a.csv:meta:text") == ["hello"]


def test_a_drive_letter_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("C").write_text("never read")
    with pytest.raises(InputError, match="does not exist"):
        read_prompts("C:\\prompts.csv")
    # On other systems a backslash is an ordinary character of a name.
    Path("C:\\prompts.csv").write_text("goal,prompt\ng,p\n")
    assert read_prompts("C:\\prompts.csv") == ["p"]
    assert read_prompts("C:\\prompts.csv:goal") == ["g"]


def test_chat_rows_give_the_last_user_message(tmp_path: Path) -> None:
    chat = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "la"}, {"type": "text", "text": "st"}]},
        {"role": "assistant", "content": "b"},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"messages": chat}) + "\n" + json.dumps({"messages": chat[:2]}))
    for spec in (str(path), f"{path}:messages"):
        with pytest.warns(InferAlignerWarning) as caught:
            assert read_prompts(spec) == ["last", "first"]
        assert [str(warning.message) for warning in caught] == [
            f"{path}: of 2 rows with messages only the last user message is read as the prompt. "
            "Left out: a system prompt in 2 rows, earlier turns in 1 row. "
            "`fit --system TEXT` sets one system prompt for all prompts."
        ]
    path.write_text(json.dumps({"messages": chat[:1]}))
    with pytest.raises(InputError, match="no message of the role 'user'"):
        read_prompts(str(path))
    picture = [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]
    path.write_text(json.dumps({"messages": picture}))
    with pytest.raises(InputError, match="not text"):
        read_prompts(str(path))


def test_rows_of_both_kinds_mix(tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text('"one"\n\n{"prompt": "two"}\n')
    assert read_prompts(str(path)) == ["one", "two"]


BROKEN: list[tuple[str, bytes, str, str]] = [
    ("p.txt", b"", "", "empty"),
    ("p.txt", b" \n\t\n", "", "empty"),
    ("p.txt", b"\xef\xbb\xbf\n", "", "no prompt"),
    ("p.txt", b"good\nbad \xff\n", "", r"not UTF-8: byte 0xff at offset 9, line 2"),
    ("p.txt", "text".encode("utf-16"), "", "UTF-16"),
    ("p.txt", b"a\nb\0c\n", "", "NUL character in line 2"),
    ("p.txt", b"a\n", ":prompt", "has none"),
    ("p.docx", b"a\n", "", r"ends in '.docx': expected one of .txt"),
    ("p", b"a\n", "", "ends in ''"),
    ("p.csv", b"text,id\na,1\n", "", r"no column named prompt.*it has 'text', 'id'"),
    ("p.csv", b"text,id\na,1\n", ":nope", r"no column 'nope': it has 'text', 'id'"),
    ("p.csv", b"prompt\n", "", "has no prompts"),
    ("p.csv", b"prompt\nx\n", ":", "column name after the colon"),
    ("p.csv", b"id,prompt\n1,a\n2\n", "", r"line 3: no field 'prompt'"),
    ("p.csv", b"prompt,id\nHello, you,1\n", "", "3 fields under 2 columns; quote"),
    ("p.csv", b"id,prompt\n1, \n", "", "line 2, column 'prompt': the prompt is empty"),
    ("p.csv", b"prompt,input,input\na,b,c\n", "", "2 columns 'input'"),
    ("p.csv", b"prompt;id\na;1\n", "", "it has 'prompt;id'.*Is it separated by ';'"),
    ("p.parquet", b"PAR1", "", r"expected one of .*pandas.read_parquet"),
    ("p.jsonl.gz", b"x", "", "unpack it first"),
    ("p.jsonl", b'{"prompt": "a", "prompt": "b"}\n', "", "line 1: an object has two fields 'prompt'"),
    ("p.jsonl", b'{"prompt": NaN}\n', "", "column 'prompt': the prompt is a JSON number"),
    ("p.jsonl", b'{"prompt": {"text": "a"}}\n', "", "column 'prompt': the prompt is a JSON object"),
    ("p.jsonl", b"{}\n", "", "it has none"),
    ("p.csv", b"prompt,prompt\na,b\n", "", "2 columns 'prompt'"),
    ("p.csv", b'prompt\n"open\n', "", "broken table"),
    ("p.json", b'{"prompt": "a"}', "", "JSON object: expected a list"),
    ("p.json", b'[\n"a",\n}', "", "line 3, column 1: broken JSON"),
    ("p.json", b"[]", "", "no prompt"),
    ("p.json", b"[1]", "", "item 1: a JSON number"),
    ("p.json", b"[" * 100_000, "", "cannot be read"),
    ("p.json", b'["\\ud800"]', "", "surrogate"),
    ("p.json", b'["\\u0000"]', "", "NUL"),
    ("p.jsonl", b'{"prompt": "a"}\n{"prompt": \n', "", "line 2.*broken JSON"),
    ("p.jsonl", b'{"prompt": "a"}\n{"goal": "b"}\n', "", "line 2: no field 'prompt'; it has 'goal'"),
    ("p.jsonl", b'{"prompt": 3}\n', "", "JSON number, expected a string"),
    ("p.jsonl", b'{"prompt": true}\n', "", "JSON boolean"),
    ("p.jsonl", b'{"prompt": null}\n', "", "JSON null"),
    ("p.jsonl", b'{"prompt": ["a"]}\n', "", "expected a string or messages"),
    ("p.jsonl", b'"a"\n', ":prompt", ": a JSON string"),
]


@pytest.mark.parametrize(("name", "data", "column", "message"), BROKEN)
def test_broken_files_say_what_is_wrong_and_where(
    tmp_path: Path, name: str, data: bytes, column: str, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as caught:
        read_prompts(f"{path}{column}")
    assert name in str(caught.value)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.csv:col' does not exist"):
        read_prompts(f"{tmp_path}/absent.csv:col")
    with pytest.raises(InputError, match="is a folder"):
        read_prompts(str(tmp_path))
    for spec in ("", "nul\0.txt", "x" * 5000 + ".txt"):
        with pytest.raises(InputError, match=r"does not exist|not a usable path"):
            read_prompts(spec)


class FakeRows:
    """The few members of a `datasets.Dataset` that are used."""

    def __init__(self, columns: dict[str, list[object]]) -> None:
        self.columns = columns
        self.column_names = list(columns)

    def __getitem__(self, column: str) -> list[object]:
        return self.columns[column]


@pytest.fixture
def fake_hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], list[tuple[object, ...]]]:
    calls: list[tuple[object, ...]] = []

    def serve(result: object) -> list[tuple[object, ...]]:
        def load_dataset(name: str, config: str | None = None, *, split: str | None = None) -> object:
            calls.append((name, config, split))
            if isinstance(result, Exception):
                raise result
            return result

        module = types.ModuleType("datasets")
        module.load_dataset = load_dataset  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "datasets", module)
        return calls

    return serve


def test_hub_data_sets_are_joined_or_refused(fake_hub: Callable[[object], list[tuple[object, ...]]]) -> None:
    fake_hub(FakeRows({"instruction": ["a", "b"], "input": ["", "more"], "output": ["x", "y"]}))
    assert read_prompts("hf://me/data") == ["a", "b\nmore"]
    assert read_prompts("hf://me/data#instruction") == ["a", "b"]
    fake_hub(FakeRows({"question": ["q"], "choices": [["yes", "no"]], "answer": [0]}))
    with pytest.raises(
        InputError, match=r"hf://me/data:test, row 1: .*'choices'.*give hf://me/data:test#question"
    ):
        read_prompts("hf://me/data:test")


def test_hub_data_sets(fake_hub: Callable[[object], list[tuple[object, ...]]]) -> None:
    rows = FakeRows({"goal": ["g"], "text": ["t"]})
    calls = fake_hub(rows)
    assert read_prompts("hf://me/data[conf]:test[:10]#text") == ["t"]
    assert calls[-1] == ("me/data", "conf", "test[:10]")
    fake_hub({"train": rows, "test": FakeRows({"goal": ["other"]})})
    assert read_prompts("hf://me/data") == ["g"]
    assert calls[-1] == ("me/data", None, None)
    fake_hub({"only": rows})
    assert read_prompts("hf://me/data#goal") == ["g"]
    fake_hub({"a": rows, "b": rows})
    with pytest.raises(InputError, match="splits 'a', 'b'"):
        read_prompts("hf://me/data#goal")
    fake_hub(rows)
    with pytest.raises(InputError, match="no column 'nope': it has 'goal', 'text'"):
        read_prompts("hf://me/data#nope")
    fake_hub(OSError("offline"))
    with pytest.raises(InputError, match="offline"):
        read_prompts("hf://me/data#goal")
    with pytest.raises(InputError, match="cannot be read"):
        read_prompts("hf://#x")


def test_the_hub_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"inferaligner\[eval\]"):
        read_prompts("hf://me/data#goal")
