"""Suites: the contract of every declaration, sources, samples and files of the user."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from inferaligner.errors import InputError
from inferaligner.evaluation.suites.catalogue import DEFAULT, declared, load, named
from inferaligner.evaluation.suites.published import Published
from inferaligner.evaluation.suites.suite import KINDS, Item, Shipped, Suite, Task
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.images import pictures_of, text_of

DATA = Path(os.environ.get("INFERALIGNER_DATA", Path(__file__).parents[4] / "shared" / "data"))


@pytest.mark.parametrize("name", sorted(declared()))
def test_a_declaration_is_complete(name: str) -> None:
    suite = declared()[name]
    assert suite.name == name and suite.kind in KINDS and suite.task in get_args(Task)
    assert suite.title and suite.citation and suite.licence
    if isinstance(suite.source, Published):
        assert suite.source.get.startswith("https://")


@pytest.mark.parametrize("name", sorted(n for n, s in declared().items() if isinstance(s.source, Published)))
def test_a_missing_source_says_how_to_get_it(name: str, tmp_path: Path) -> None:
    for data in (None, tmp_path):
        with pytest.raises(InputError, match="https://"):
            declared()[name].source.items(data)


@pytest.mark.parametrize("name", sorted(n for n, s in declared().items() if isinstance(s.source, Published)))
def test_a_published_set_is_read(name: str) -> None:
    source = declared()[name].source
    assert isinstance(source, Published)
    if not all((DATA / file).is_file() for file in source.files):
        pytest.skip("the public set is not here")
    items = source.items(DATA)
    # Only part of the pictures of the paper's set could be collected.
    assert len(items) >= (30 if name == "mm_harmfulbench" else 90)
    check_items(declared()[name], items)


@pytest.mark.parametrize("name", sorted(n for n, s in declared().items() if isinstance(s.source, Shipped)))
def test_a_shipped_suite_is_made(name: str) -> None:
    items = declared()[name].source.items(None)
    assert len(items) >= 30
    check_items(declared()[name], items)


def check_items(suite: Suite, items: list[Item]) -> None:
    """The fields that a task needs."""
    assert all(text_of(item.prompt).strip() for item in items)
    if suite.task in ("pick", "name"):
        assert all(len(item.choices) > 1 and item.answer in item.choices for item in items)
    elif suite.task == "number":
        assert all(item.answer is not None and float(item.answer.replace(",", "")) < 1e12 for item in items)


def test_two_suites_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from inferaligner.evaluation.suites import gsm8k

    monkeypatch.setattr(gsm8k, "GSM8K", replace(gsm8k.GSM8K, name="xstest"))
    with pytest.raises(ValueError, match="Two suites have the name xstest"):
        declared.__wrapped__()


def test_the_shipped_suites_come_from_the_test_part_alone() -> None:
    contrast = load_contrast_set()
    seen = {p.text for part in ("extraction", "calibration") for p in contrast.part(part)}
    for name in DEFAULT:
        assert isinstance(declared()[name].source, Shipped)
        assert not seen & {item.prompt for item in declared()[name].source.items(None)}


def test_pictures_of_the_test_part() -> None:
    """Attacks and twins in one look, in every style; suites of text have no picture."""
    attack, twins, benign = load(
        ["contrast-picture-attack", "contrast-picture-twins", "contrast-picture-benign"],
        data=None,
        limit=10_000,
    )
    for subset in (attack, twins, benign):
        assert all(len(pictures_of(item.prompt)) == 1 for item in subset.items)
        assert {item.domain for item in subset.items} == {"typographic", "written", "mixed"}
        assert len(subset.items) >= 300
    assert abs(len(attack.items) - len(twins.items)) < 0.1 * len(twins.items)
    carriers = [{text_of(i.prompt) for i in s.items if i.domain == "typographic"} for s in (attack, twins)]
    assert carriers[0] == carriers[1]


def test_the_arithmetic_is_right() -> None:
    (subset,) = load(["arithmetic"], data=None)
    assert len(subset.items) == 300
    for item in subset.items:
        assert item.answer in item.choices and len(set(item.choices)) == 4
        numbers = [int(word.strip(".,?")) for word in item.prompt.split() if word.strip(".,?").isdigit()][:2]
        left, right = numbers
        found = {"+": left + right, "-": left - right, "*": left * right, "/": left / right}[item.domain]
        assert found == int(item.answer or "")


def test_the_reading_gives_nothing_away() -> None:
    (subset,) = load(["reading"], data=None)
    assert len(subset.items) == 300
    for item in subset.items:
        assert item.answer in item.choices and len(set(item.choices)) == len(item.choices) > 1
        assert not any(choice in item.prompt for choice in item.choices if " " in choice)
    for item in subset.items:
        if item.domain == "fact":
            text = item.prompt.lower()
            assert str(item.answer).lower() in text
            assert not {c.lower() for c in item.choices if c != item.answer} & set(re.findall(r"\w+", text))


def test_a_sample_is_the_same_for_a_seed_and_another_for_another() -> None:
    first, again, other = (load(["arithmetic"], data=None, limit=40, seed=seed)[0] for seed in (1, 1, 2))
    assert first == again
    assert set(first.items) != set(other.items)
    assert first.described == "40 of 599, drawn with seed 1"
    everything = load(["contrast-harmful"], data=None, limit=10_000)[0]
    assert everything.described == f"all {len(everything.items)}"


def test_files_of_the_user(tmp_path: Path) -> None:
    prompts, templates, labelled = tmp_path / "asked.txt", tmp_path / "frames.jsonl", tmp_path / "mine.jsonl"
    prompts.write_text("One?\nTwo?\n")
    templates.write_text('{"prompt": "A {prompt} b"}\n{"prompt": "[INSERT PROMPT HERE] now"}\n')
    labelled.write_text('{"prompt": "Sky?", "answer": "blue", "choices": "blue|red", "domain": "colour"}\n')
    assert [i.prompt for i in named(f"harmful={prompts}").source.items(None)] == ["One?", "Two?"]
    crossed = named(f"jailbreak={templates}::{prompts}").source.items(None)
    assert [i.prompt for i in crossed] == ["A One? b", "A Two? b", "One? now", "Two? now"]
    mine = named(f"utility={labelled}")
    assert mine.task == "pick" and mine.source.items(None)[0].choices == ("blue", "red")
    labelled.write_text('{"prompt": "2 + 2?", "answer": 4}\n')
    assert named(f"utility={labelled}").task == "number"


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"prompt": "a", "answer": "x"}, "number"),
        ({"prompt": "a", "answer": "x", "choices": ["y", "z"]}, "not among"),
        ({"prompt": "a", "answer": "x", "choices": ["x"]}, "two or more"),
        ({"answer": "x"}, "'prompt'"),
    ],
)
def test_bad_labels_are_named(row: dict[str, object], word: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=word):
        named(f"utility={file}")


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no suite 'nonsense'"):
        named("nonsense")
    with pytest.raises(InputError, match="expected one of"):
        named("evil=prompts.txt")
    with pytest.raises(InputError, match="named twice"):
        load(["arithmetic", "arithmetic"], data=None)
    bare = tmp_path / "frames.txt"
    bare.write_text("no place for it\n")
    with pytest.raises(InputError, match="has no place"):
        named(f"jailbreak={bare}::{bare}")


def test_a_suite_may_be_named_with_a_number_of_its_prompts() -> None:
    few, rest = load(["arithmetic@7", "contrast-harmful"], data=None, limit=20)
    assert (len(few.items), len(rest.items), few.suite.name) == (7, 20, "arithmetic")
    for wrong in ("arithmetic@many", "arithmetic@0"):
        with pytest.raises(InputError, match="number of prompts after the @"):
            load([wrong], data=None)
    with pytest.raises(InputError, match="There is no suite"):
        load(["arithmetics@7"], data=None)
