"""The demo on tiny models: everything but the weights is real."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from inferaligner.aligner import Aligner
from inferaligner.judges import Judgement
from inferaligner.prompts import contrast
from inferaligner.prompts.contrast import ContrastSet, load_contrast_set
from tests.support.command_line import Run
from tests.support.tiny_models import tiny_model, tiny_tokenizer

pytest.importorskip("matplotlib")

CANARY = "heliotrope-canary"


@pytest.fixture
def small_set(monkeypatch: pytest.MonkeyPatch) -> ContrastSet:
    """A part of the shipped contrast set, unwrapped: tiny tokenizers make long work of long prompts."""
    shipped = load_contrast_set()
    small = replace(
        shipped, pairs=shipped.pairs[::16], benign=shipped.benign[::12], wrappers=shipped.wrappers[:0]
    )
    for place in (contrast, __import__("inferaligner.aligner", fromlist=["aligner"])):
        monkeypatch.setattr(place, "load_contrast_set", lambda: small)
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
    """While fitting, whatever random weights say counts as declining, or there would be nothing to fit to."""
    monkeypatch.setattr("inferaligner.aligner.judge", lambda answer: Judgement("refusal"))


@pytest.fixture
def arguments(models: tuple[Path, Path], tmp_path: Path) -> list[object]:
    target, aligned = models
    return ["demo", "--target", target, "--aligned", aligned, "-o", tmp_path / "out", "--prompts", 6]


@pytest.mark.usefixtures("small_set", "everything_declines")
def test_demo_does_the_whole_job_and_the_next_one_reuses_the_aligner(
    run: Run, arguments: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = run(*arguments, "--json")
    assert first.code == 0, first.err
    told = first.json()
    assert told["reused"] is False
    assert sum(told["seconds"].values()) > 0
    assert {"loading the target", "loading the aligned model", "answers: bare model"} <= set(told["seconds"])

    fitted = Aligner.from_pretrained(out / "aligner")
    rows = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert rows == told["results"]
    assert all(
        set(row) == {"method", "suite", "metric", "value", "low", "high", "n", "judge"} for row in rows
    )
    by_name: dict[tuple[str, str, str], dict[str, Any]] = {
        (row["method"], row["suite"], row["metric"]): row for row in rows
    }
    for method in ("bare", "inferaligner", "own vectors"):
        shares = [
            by_name[method, "harmful", outcome]["value"] for outcome in ("refusal", "compliance", "gibberish")
        ]
        assert sum(shares) == pytest.approx(1)
    identical = by_name["inferaligner", "gate closed", "identical to the bare model"]
    assert identical["n"] > 0
    assert identical["value"] == 1
    # The gate's figures are measured anew, and must be those of the fit.
    for kind, rate in fitted.artifact.calibration["held_out"]["open"].items():
        assert by_name["inferaligner", kind, "gate open"]["value"] == pytest.approx(rate["value"], abs=0.05)

    records = [json.loads(line) for line in (out / "records.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(records) == 3 * 12
    assert (out / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

    written = (out / "aligner" / "aligner.json").stat().st_mtime_ns
    second = run(*arguments)
    assert second.code == 0, second.err
    assert "Fit it anew with --refit" in second.err
    assert (out / "aligner" / "aligner.json").stat().st_mtime_ns == written
    assert "What became of the answers (judge: rules)" in second.out
    assert "How often the gate opens" in second.out
    assert str(out / "report.html") in second.err


@pytest.mark.usefixtures("small_set", "everything_declines")
def test_no_answer_to_a_harmful_prompt_reaches_the_reader_unless_it_declines(
    run: Run, arguments: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import inferaligner.evaluation.side_by_side as side_by_side

    original = side_by_side.generate_answers

    def with_canary(*args: Any, **options: Any) -> Any:
        for answer in original(*args, **options):
            yield replace(answer, text=f"Of course, and here is how you do it: {CANARY}.")

    monkeypatch.setattr(side_by_side, "generate_answers", with_canary)
    done = run(*arguments)
    assert done.code == 0, done.err
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    records = (tmp_path / "out" / "records.jsonl").read_text(encoding="utf-8")
    assert CANARY in records, "raw answers belong into the records"
    assert "answer withheld, 10 words" in page
    assert "answer withheld, 10 words" in done.out
    harmful = {json.loads(line)["prompt"] for line in records.splitlines() if json.loads(line)["harmful"]}
    # The harmless prompts were answered with the same words, and those may be shown.
    for example in re.findall(r'<article class="example">.*?</article>', page, re.DOTALL):
        assert (CANARY in example) == ("answer withheld" not in example)
    outside = re.sub(r'<article class="example">.*?</article>', "", page, flags=re.DOTALL)
    assert CANARY not in outside
    assert harmful
    summary = run(*arguments, "--json")
    assert CANARY not in summary.out + summary.err


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
        "demo", "--target", target, "--aligned", target, "-o", tmp_path / "out", "--prompts", 4, "--json"
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


def test_a_file_in_the_way_is_told_before_anything_is_loaded(
    run: Run, arguments: list[object], tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    done = run(*arguments)
    assert done.code == 2
    assert "give another folder with -o" in done.err
    assert "loading" not in done.err
