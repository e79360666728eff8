"""Corpora: every one reads rows as published, and says so where they are not."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from reproduction.corpora.catalogue import declared, named
from reproduction.decontamination import decontaminate

from inferaligner.errors import InputError
from inferaligner.evaluation.suites.catalogue import load

_SHARED = Path(os.environ.get("INFERALIGNER_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.parametrize("name", sorted(declared()))
def test_examples_are_read_as_published_rows_are(name: str) -> None:
    rows = named(name).examples()
    assert len(rows) >= 8
    assert len({row.prompt for row in rows}) == len(rows)
    assert all(row.prompt.strip() and row.answer.strip() and row.key.strip() for row in rows)


@pytest.mark.parametrize("name", sorted(name for name, corpus in declared().items() if corpus.files))
def test_other_rows_than_published_are_told(name: str, tmp_path: Path) -> None:
    corpus = named(name)
    file = tmp_path / corpus.files[0]
    file.parent.mkdir(parents=True)
    row = {"unexpected": "row"} if file.suffix != ".txt" else "no label here"
    text = json.dumps([row] if file.suffix == ".json" else row)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=f"{name} are not laid out as published"):
        corpus.rows(tmp_path)


def test_a_corpus_that_is_nowhere_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="takala/financial_phrasebank"):
        named("fpb").rows(tmp_path)


def test_an_unknown_corpus() -> None:
    with pytest.raises(InputError, match="no corpus 'gsm9k'"):
        named("gsm9k")


def test_the_calculators_marks_are_taken_out() -> None:
    answers = [row.answer for row in named("gsm8k").examples()]
    assert not any("<<" in answer for answer in answers)
    assert answers[0].endswith("#### 240")


def test_single_step_answers_are_right() -> None:
    signs = {
        "brings|What is their sum|What is the total": lambda x, y: x + y,
        "lost|sold|throws": lambda x, y: x - y,
        "crates holds|into every one|rows of": lambda x, y: x * y,
        "equal piles|evenly between|filled alike": lambda x, y: x // y,
    }
    rows = named("single-step").rows(None)
    assert len(rows) > 15_000
    for row in rows[:2000]:
        x, y = (int(n) for n in re.findall(r"\d+", row.prompt)[:2])
        (work,) = [work for words, work in signs.items() if re.search(words, row.prompt)]
        assert int(row.answer) == work(x, y), row.prompt
        choices = re.search(r"(?:one number:|is it:|one of) ([\d, ]+)", row.prompt)
        assert choices is None or row.answer in re.findall(r"\d+", choices[1])


def test_single_step_problems_are_not_those_of_the_suite() -> None:
    (subset,) = load(["arithmetic"], data=None, limit=10_000)
    rows = named("single-step").rows(None)[:3000]
    kept, found = decontaminate(rows, {"arithmetic": [item.prompt for item in subset.items]})
    assert (len(kept), found.left_out) == (len(rows), {})


@pytest.mark.skipif(not _SHARED.is_dir(), reason="public sets are not at hand")
@pytest.mark.parametrize(
    "name",
    [
        "alpaca",
        "chatdoctor",
        "fiqa",
        "fpb",
        "gsm8k",
        "headline",
        "medqa",
        "pubmedqa",
        "pubmedqa-reasoning-free",
    ],
)
def test_public_sets_are_read(name: str) -> None:
    rows = named(name).rows(_SHARED)
    assert len(rows) > 500
    assert all(row.key in row.prompt for row in rows[:50])
