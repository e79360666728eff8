"""One evaluation from a recipe: its description, continued and replaced runs, inference time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from inferaligner.errors import InputError
from inferaligner.evaluation.evaluate import Recipe, evaluate
from inferaligner.evaluation.inference_time import TimingSettings
from inferaligner.evaluation.methods.catalogue import make_methods
from inferaligner.evaluation.records_file import read_records
from inferaligner.fit.progress import NullProgress
from tests.support.tiny_bench import subset, tiny_bench


class Notes(NullProgress):
    """Keeps the notes of a run."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    torch.set_num_threads(1)
    methods = make_methods(["inferaligner", "own-vectors"], tiny_bench())
    suites = [subset("asked", copies=1), subset("ordinary", "benign", copies=1)]
    return Recipe(methods, suites, max_new_tokens=4, aligner="DIR", batch_size=3)


def test_a_finished_run_is_not_answered_again(recipe: Recipe, tmp_path: Path) -> None:
    first = evaluate(recipe, tmp_path, NullProgress())
    assert len(first.records) == 3 * 10
    written = (tmp_path / "records.jsonl").read_bytes()
    stages = Notes()
    again = evaluate(recipe, tmp_path, stages)
    assert again.results() == first.results()
    assert (tmp_path / "records.jsonl").read_bytes() == written
    assert stages.notes == [f"{tmp_path} holds 30 records of this run; going on from there."]


def test_another_recipe_is_refused_or_replaces_the_run(recipe: Recipe, tmp_path: Path) -> None:
    evaluate(recipe, tmp_path, NullProgress())
    (tmp_path / "timing.json").write_text("[]")
    other = replace(recipe, subsets=recipe.subsets[:1])
    with pytest.raises(InputError, match="other suites"):
        evaluate(other, tmp_path, NullProgress())
    evaluate(other, tmp_path, NullProgress(), replace_other=True)
    assert {record["suite"] for record in read_records(tmp_path)} == {"asked"}
    assert not (tmp_path / "timing.json").exists()
    stages = Notes()
    evaluate(other, tmp_path, stages, replace_other=True)
    assert "15 records of this run" in stages.notes[0], "the same run is continued"


def test_a_run_keeps_its_batch_size(recipe: Recipe, tmp_path: Path) -> None:
    evaluate(recipe, tmp_path, NullProgress())
    free = replace(recipe, batch_size=None)
    assert free.described(tmp_path)["batch size"] == 3
    assert free.described(tmp_path / "elsewhere")["batch size"] == 64


def test_likelihoods_are_measured_and_answers_withheld_as_the_recipe_says(
    recipe: Recipe, tmp_path: Path
) -> None:
    full = evaluate(recipe, tmp_path / "full", NullProgress())
    for field in ("leaning", "mean_logprob"):
        assert any(field in record for record in full.records)
    assert "withhold" not in full.run
    short = replace(recipe, likelihoods=False, withhold=True)
    run = evaluate(short, tmp_path / "short", NullProgress())
    assert not any({"leaning", "mean_logprob"} & record.keys() for record in run.records)
    stored = json.loads((tmp_path / "short" / "run.json").read_text())
    assert (stored["likelihoods"], stored["withhold"]) == (False, True)
    with pytest.raises(InputError, match="other likelihoods"):
        evaluate(recipe, tmp_path / "short", NullProgress())


def test_inference_time_is_measured_once(recipe: Recipe, tmp_path: Path) -> None:
    timed = replace(recipe, timing=TimingSettings(prompts=1, tokens=2, rounds=2))
    run = evaluate(timed, tmp_path, NullProgress())
    timings = run.timings()
    # Every round times every method on one open and one closed prompt.
    assert len(timings) == 2 * 3 * 2 and {timing.tokens for timing in timings} == {2}
    assert {(t.method, t.state) for t in timings} == {
        ("none", "any"),
        *((method, state) for method in ("inferaligner", "own-vectors") for state in ("open", "closed")),
    }
    assert evaluate(timed, tmp_path, NullProgress()).timings() == timings
