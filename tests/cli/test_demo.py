"""The demo on tiny models: everything but the weights is real."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inferaligner.evaluation import runner
from inferaligner.judges import Judgement
from inferaligner.prompts import contrast
from inferaligner.prompts.contrast import ContrastSet, load_contrast_set
from tests.support.command_line import Run
from tests.support.tiny_models import tiny_model, tiny_tokenizer

pytest.importorskip("matplotlib")

CANARY = "heliotrope-canary"


@pytest.fixture
def small_set(monkeypatch: pytest.MonkeyPatch) -> ContrastSet:
    """A part of the shipped contrast set with one short wrapper: tiny tokenizers make long prompts longer."""
    shipped = load_contrast_set()
    shortest = min(shipped.wrappers_of("test"), key=lambda wrapper: len(wrapper.template))
    small = replace(shipped, pairs=shipped.pairs[::16], benign=shipped.benign[::12], wrappers=(shortest,))
    monkeypatch.setattr(contrast, "_shipped", lambda: small)
    return small


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """A tiny target, and a sibling of it with other weights."""
    places = tmp_path / "target", tmp_path / "sibling"
    for seed, place in enumerate(places):
        tiny_model("llama", seed=seed, max_position_embeddings=1024).save_pretrained(place)
        tiny_tokenizer().save_pretrained(place)
    return places


@pytest.fixture
def everything_declines(monkeypatch: pytest.MonkeyPatch) -> None:
    """While fitting, every answer counts as declining: random weights would give nothing to fit to."""
    monkeypatch.setattr("inferaligner.aligner.judge", lambda answer: Judgement("refusal"))
    for module in ("search_prompts", "strength_search"):  # such answers never end
        monkeypatch.setattr(f"inferaligner.fit.strength.{module}.ANSWER_TOKENS", 4)


@pytest.fixture
def arguments(models: tuple[Path, Path], tmp_path: Path) -> list[object]:
    target, aligned = models
    return [
        "demo",
        "--target",
        target,
        "--aligned",
        aligned,
        "-o",
        tmp_path / "out",
        "--max-new-tokens",
        8,
        "--prompts",
        6,
    ]


@pytest.mark.usefixtures("small_set", "everything_declines")
def test_demo_does_the_whole_job_and_the_next_one_reuses_it(
    run: Run, arguments: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = run(*arguments, "--json")
    assert first.code == 0, first.err
    summary = first.json()
    assert summary["reused"] is False
    assert summary["decision"] in ("go", "look first", "no go") and summary["checks"]
    assert sum(summary["seconds"].values()) > 0
    stages = {"loading the target", "loading the aligned model", "bare model: contrast-harmful"}
    assert stages <= set(summary["seconds"])

    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert rows == summary["results"]
    assert all(
        set(row) == {"method", "suite", "metric", "value", "low", "high", "n", "judge", "max_new_tokens"}
        for row in rows
    )
    by_name: dict[tuple[str, str, str], dict[str, Any]] = {
        (row["method"], row["suite"], row["metric"]): row for row in rows
    }
    for method in ("none", "inferaligner", "own-vectors"):
        shares = [
            by_name[method, "contrast-harmful", outcome]["value"]
            for outcome in ("refusal", "compliance", "gibberish")
        ]
        assert sum(shares) == pytest.approx(1)
    identical = by_name["inferaligner", "contrast-benign", "closed and identical"]
    assert identical["n"] > 0
    assert identical["value"] == 1

    records = [json.loads(line) for line in (out / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    counts = Counter(record["suite"] for record in records if record["method"] == "none")
    assert counts == {
        "contrast-harmful": 6,
        "contrast-jailbreak": 3,
        "contrast-over-refusal": 3,
        "contrast-benign": 3,
    }
    assert len(records) == 3 * sum(counts.values())
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

    written = (out / "aligner" / "aligner.json").stat().st_mtime_ns
    second = run(*arguments)
    assert second.code == 0, second.err
    assert "Fit it anew with --refit" in second.err and "45 records of this run" in second.err
    assert (out / "aligner" / "aligner.json").stat().st_mtime_ns == written
    assert json.loads((out / "results.json").read_text(encoding="utf-8")) == rows
    assert "Side by side" in second.out and "Methods and suites" in second.out
    assert "How often the gate opens" in second.out
    assert str(out / "report.html") in second.err

    fewer = run(*arguments[:-1], 1, "--json")
    assert fewer.code == 0, fewer.err
    assert {r["suite"] for r in fewer.json()["results"]} >= {"contrast-harmful", "contrast-over-refusal"}
    lines = (out / "records.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3 * 2, "a demo of other prompts replaces the records"


@pytest.mark.usefixtures("small_set", "everything_declines")
def test_no_answer_to_a_harmful_prompt_reaches_the_reader_unless_it_declines(
    run: Run, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = runner.generate_answers

    def with_canary(*args: Any, **options: Any) -> Any:
        for answer in original(*args, **options):
            yield replace(answer, text=f"Of course, and here is how you do it: {CANARY}.")

    monkeypatch.setattr(runner, "generate_answers", with_canary)
    done = run(*arguments)
    assert done.code == 0, done.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    records = (tmp_path / "out" / "records.jsonl").read_text(encoding="utf-8")
    assert CANARY in records, "raw answers belong into the records"
    assert "answer withheld, 10 words" in page
    assert "answer withheld, 10 words" in done.out
    # The harmless prompts were answered with the same words, and those answers may be shown.
    for example in re.findall(r'<article class="example">.*?</article>', page, re.DOTALL):
        assert (CANARY in example) == ("answer withheld" not in example)
    outside = re.sub(r'<article class="example">.*?</article>', "", page, flags=re.DOTALL)
    assert CANARY not in outside
    summary = run(*arguments, "--json")
    assert CANARY not in summary.out + summary.err
    # Judging again renews the report, and withholds the same.
    assert run("judge", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "report.html").read_text(encoding="utf-8").count(CANARY) == page.count(CANARY)


@pytest.mark.usefixtures("small_set", "everything_declines")
def test_an_aligner_of_another_target_is_fitted_anew(
    run: Run, arguments: list[object], models: tuple[Path, Path], tmp_path: Path
) -> None:
    from tests.support.tiny_aligner import tiny_aligner

    narrow = tiny_model("llama", hidden_size=16)
    tiny_aligner(narrow, tiny_tokenizer()).save_pretrained(tmp_path / "out" / "aligner")
    done = run(*arguments, "--json")
    assert done.code == 0, done.err
    assert "is not used, and fitted anew" in done.err
    assert done.json()["reused"] is False
    # It is now the aligner of this target; another aligned model is another aligner again.
    target, aligned = models
    other = run(
        "demo",
        "--target",
        target,
        "--aligned",
        target,
        "-o",
        tmp_path / "out",
        "--prompts",
        4,
        "--max-new-tokens",
        8,
        "--json",
    )
    assert other.code == 0, other.err
    assert "comes from another aligned model" in other.err
    assert aligned.exists()


@pytest.mark.usefixtures("small_set", "everything_declines")
@pytest.mark.parametrize("which", ["target", "aligned model"])
def test_a_model_that_was_trained_on_is_noticed_under_its_old_name(
    run: Run, arguments: list[object], models: tuple[Path, Path], which: str
) -> None:
    first = run(*arguments, "--json")
    assert first.code == 0, first.err
    place = models[which != "target"]
    model = AutoModelForCausalLM.from_pretrained(place)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight *= 1.05
    model.save_pretrained(place)
    again = run(*arguments, "--json")
    assert again.code == 0, again.err
    assert "was fitted on other weights" in again.err
    assert again.json()["reused"] is False
    assert run(*arguments, "--json").json()["reused"] is True


def test_a_folder_of_something_else_is_left_alone(run: Run, arguments: list[object], tmp_path: Path) -> None:
    (tmp_path / "out" / "aligner").mkdir(parents=True)
    (tmp_path / "out" / "aligner" / "notes.txt").write_text("mine")
    done = run(*arguments)
    assert done.code == 2
    assert "is not an aligner" in done.err
    assert (tmp_path / "out" / "aligner" / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_reported_before_anything_is_loaded(
    run: Run, arguments: list[object], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    done = run(*arguments)
    assert done.code == 2
    assert "give another folder with -o" in done.err
    assert "loading" not in done.err
