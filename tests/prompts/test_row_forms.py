"""A column that was chosen automatically is the whole prompt, is joined to the rest, or is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from reproduction.corpora.alpaca import CORPUS

from inferaligner.errors import InputError
from inferaligner.evaluation.suites.alpaca import ALPACA
from inferaligner.evaluation.suites.user_files import user_suite
from inferaligner.prompts.reading import read_prompts
from inferaligner.prompts.row_forms import with_input

TEXT = "Bees dance to tell where flowers are."


def file_of(folder: Path, rows: list[dict[str, Any]], suffix: str) -> Path:
    """The rows as a file of that kind; tables get JSON for what is no text."""
    path = folder / f"rows{suffix}"
    if suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    else:
        names = list(dict.fromkeys(name for row in rows for name in row))
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, names, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            for row in rows:
                writer.writerow({k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()})
    return path


USER, ANSWER = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Bees."}
SUFFIXES = (".json", ".jsonl", ".csv", ".tsv")

JOINED: list[tuple[str, list[dict[str, Any]], list[str], str, list[str]]] = [
    (
        "Alpaca",
        [
            {"instruction": "Sum up.", "input": TEXT, "output": "-"},
            {"instruction": "Hi.", "input": "", "output": "-"},
        ],
        [f"Sum up.\n{TEXT}", "Hi."],
        "instruction",
        ["Sum up.", "Hi."],
    ),
    (
        "Dolly",
        [
            {"instruction": "When?", "context": "In 2000.", "response": "-"},
            {"instruction": "Hi.", "context": ""},
        ],
        ["When?\nIn 2000.", "Hi."],
        "instruction",
        ["When?", "Hi."],
    ),
    (
        "SQuAD",
        [{"id": "1", "title": "t", "context": TEXT, "question": "Who?", "answers": {"text": ["Bees"]}}],
        [f"{TEXT}\n\nWho?"],
        "question",
        ["Who?"],
    ),
    ("any case", [{"Instruction": "Sum up.", "INPUT": TEXT}], [f"Sum up.\n{TEXT}"], "INPUT", [TEXT]),
    (
        "no instruction",
        [{"instruction": "", "input": "My ears ring."}],
        ["My ears ring."],
        "input",
        ["My ears ring."],
    ),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("form", "rows", "joined", "column", "alone"), JOINED, ids=[case[0] for case in JOINED]
)
def test_forms_are_joined_and_a_named_column_stays_as_it_is(
    tmp_path: Path,
    suffix: str,
    form: str,
    rows: list[dict[str, Any]],
    joined: list[str],
    column: str,
    alone: list[str],
) -> None:
    path = file_of(tmp_path, rows, suffix)
    assert read_prompts(str(path)) == joined
    assert read_prompts(f"{path}:{column}") == alone


def test_a_file_reads_like_the_suite_and_the_corpus(tmp_path: Path) -> None:
    rows = [
        {"instruction": "Sum up.", "input": TEXT, "output": "a"},
        {"instruction": "Hello", "input": "", "output": "b"},
    ]
    (tmp_path / "alpaca_en_demo").mkdir()
    (tmp_path / "alpaca_en_demo" / "alpaca_en_demo.json").write_text(json.dumps(rows), encoding="utf-8")
    prompts = read_prompts(str(tmp_path / "alpaca_en_demo" / "alpaca_en_demo.json"))
    assert prompts == [item.prompt for item in ALPACA.source.items(tmp_path)]
    assert prompts == [row.prompt for row in CORPUS.rows(tmp_path)]
    assert with_input("a", None) == "a" and with_input("", "b") == "b"


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"prompt": "Who?", "system": "You are a nurse."}, "prompt", "system"),
    ({"prompt": "Who?", "input": TEXT}, "prompt", "input"),
    ({"prompt": "Who?", "context": TEXT}, "prompt", "context"),
    ({"prompt": "Who?", "history": [["a", "b"]]}, "prompt", "history"),
    ({"question": "Who?", "options": {"A": "bees", "B": "ants"}}, "question", "options"),  # MedQA
    ({"question": "Who?", "choices": ["bees", "ants"], "answer": 0}, "question", "choices"),  # MMLU
    ({"question": "Who?", "opa": "bees", "opb": "ants", "cop": 1}, "question", "opa"),  # MedMCQA
    ({"question": "Who?", "A": "bees", "B": "ants"}, "question", "A"),
    ({"question": "Who?", "passage": TEXT, "answer": True}, "question", "passage"),  # BoolQ
    ({"QUESTION": "Who?", "CONTEXTS": [TEXT, TEXT]}, "QUESTION", "CONTEXTS"),  # PubMedQA
    ({"question": "Who?", "context": {"contexts": [TEXT]}}, "question", "context"),  # PubMedQA of the hub
    ({"question": "Who?", "documents": [TEXT]}, "question", "documents"),
    ({"question": "Who?", "text": TEXT, "choices": ["a", "b"]}, "question", "text"),
    ({"instruction": "Answer.", "question": "Who?"}, "instruction", "question"),
    (
        {"instruction": "Answer.", "input": TEXT, "context": "More of it, by others."},
        "instruction",
        "context",
    ),
    ({"prompt": "Who?", "messages": [{"role": "system", "content": "s"}, USER]}, "prompt", "messages"),
    ({"prompt": "Who?", "messages": [USER, ANSWER, {"role": "user", "content": "b"}]}, "prompt", "messages"),
    ({"messages": [{"role": "user", "content": "Who?"}], "tools": [{"name": "f"}]}, "messages", "tools"),
]


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("row", "column", "rest"), REFUSED, ids=[str(list(row)) for row, _, _ in REFUSED])
def test_what_no_form_joins_is_refused(
    tmp_path: Path, suffix: str, row: dict[str, Any], column: str, rest: str
) -> None:
    if suffix in (".csv", ".tsv") and row.get("context") and not isinstance(row["context"], str):
        return  # a table has texts alone, and a text beside a question is SQuAD's form
    path = file_of(tmp_path, [row], suffix)
    with pytest.raises(InputError) as caught:
        read_prompts(str(path))
    message = str(caught.value)
    assert str(path) in message and f"{path}:{column}" in message
    assert f"the column {column!r}" in message and repr(rest) in message
    assert ("line " if suffix != ".json" else "item 1") in message
    assert read_prompts(f"{path}:{column}") == ["Who?" if column != "instruction" else "Answer."]


WHOLE: list[dict[str, Any]] = [
    {"prompt": "Who?", "system": "", "input": None, "context": float("nan"), "choices": []},
    {"prompt": f"{TEXT} Who?", "context": TEXT},  # put together already
    {"prompt": "Who?", "messages": [USER, ANSWER]},
    {"prompt": "Who?", "messages": "none"},
    {
        "prompt": "Who?",
        "answer": "Bees",
        "type": "contrast",
        "target": "Sure",
        "category": "x",
        "goal": "other",
    },
    {"instruction": "Who?", "output": "Bees", "text": "### Instruction:\nWho?\n### Response:\nBees"},
]


@pytest.mark.parametrize("row", WHOLE)
def test_columns_that_add_nothing_are_no_obstacle(tmp_path: Path, row: dict[str, Any]) -> None:
    path = file_of(tmp_path, [row], ".jsonl")
    assert read_prompts(str(path)) == [row.get("prompt", row.get("instruction"))]


def test_a_later_row_is_looked_at_too(tmp_path: Path) -> None:
    path = file_of(tmp_path, [{"instruction": "Hi."}, {"instruction": "Sum up.", "input": TEXT}], ".jsonl")
    assert read_prompts(str(path)) == ["Hi.", f"Sum up.\n{TEXT}"]
    path = file_of(tmp_path, [{"prompt": "Hi."}, {"prompt": "Who?", "system": "You are a nurse."}], ".jsonl")
    with pytest.raises(InputError, match=r"line 2: .*'system'.*fit --system TEXT"):
        read_prompts(str(path))


def test_squads_own_layout(tmp_path: Path) -> None:
    paragraph = {"context": TEXT, "qas": [{"question": "Who?", "id": "1"}, {"question": "Why?", "id": "2"}]}
    path = tmp_path / "dev.json"
    path.write_text(json.dumps({"version": "2.0", "data": [{"title": "t", "paragraphs": [paragraph]}]}))
    assert read_prompts(str(path)) == [f"{TEXT}\n\nWho?", f"{TEXT}\n\nWhy?"]
    assert read_prompts(f"{path}:question") == ["Who?", "Why?"]
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": TEXT, "qas": [{"id": "1"}]}]}]}))
    with pytest.raises(InputError, match="no column named"):
        read_prompts(str(path))
    path.write_text(json.dumps({"data": [{"paragraphs": [{"qas": []}]}]}))
    with pytest.raises(InputError, match="data 1, paragraph 1: expected an object with 'context'"):
        read_prompts(str(path))
    path.write_text(json.dumps({"data": ["a"]}))
    with pytest.raises(InputError, match="JSON object: expected a list"):
        read_prompts(str(path))


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_cell_may_be_long(tmp_path: Path, suffix: str) -> None:
    text = "a " * 70_000 + "b"
    before = csv.field_size_limit()
    path = file_of(tmp_path, [{"prompt": text}], suffix)
    assert read_prompts(str(path)) == [text]
    labelled = file_of(tmp_path, [{"prompt": text, "answer": "3"}], suffix)
    assert [item.prompt for item in user_suite("utility", str(labelled)).source.items(None)] == [text]
    assert csv.field_size_limit() == before


def test_a_labelled_file_loses_no_part_of_a_prompt_either(tmp_path: Path) -> None:
    path = file_of(tmp_path, [{"prompt": "Who?", "context": TEXT, "answer": "3"}], ".jsonl")
    with pytest.raises(InputError, match=r"row 1: only 'prompt' is read, but 'context'"):
        user_suite("utility", str(path))
    path = file_of(tmp_path, [{"prompt": "Who?", "choices": ["a", "b"], "answer": "a"}], ".jsonl")
    assert len(user_suite("utility", str(path)).source.items(None)) == 1
