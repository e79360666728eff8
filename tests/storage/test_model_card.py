from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferaligner.artifact import AlignerArtifact
from inferaligner.storage.model_card import describe_reads, model_card
from tests.support.tiny_aligner import CALIBRATION, tiny_artifact
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def card(spec: str = "tiny", **calibration: Any) -> str:
    found = tiny_artifact(tiny_model(), tiny_tokenizer(), spec=spec, calibration=calibration)
    return model_card(found)


def test_settings_and_figures_are_in_it() -> None:
    text = card(**CALIBRATION)
    for words in (
        "LlamaForCausalLM, 4 layers of width 32",
        "| Gate | mean-difference: layer 1 at token -1 |",
        "at most 1.0 % of benign calibration prompts open it",
        "| Steered layers | 1, 2 |",
        "| harmful | 80.0 % | 70.0 % to 88.0 % | 90 |",
        "0.970 (0.950 to 0.990)",
        "75.0 % refusals, 25.0 % compliance",
        "## Limits",
    ):
        assert words in text, words


def test_the_papers_gate_has_no_promised_rate() -> None:
    text = card(max_false_open=0.01, paper=True, gates=[], held_out={"open": {}}, search={})
    assert "the paper's: minus the mean projection" in text and "1.0 %" not in text


@pytest.mark.parametrize(
    "calibration",
    [{}, {"held_out": {"open": {"harmful": {"value": 1.0, "low": 0.5, "high": 1.0, "n": 3}}}}],
)
def test_whatever_was_not_measured_is_left_out(calibration: dict[str, Any]) -> None:
    text = card(**calibration)
    assert "AUROC" not in text and "not calibrated" in text


def test_unusual_names_stay_in_their_cells() -> None:
    rate = {"value": 0.0, "low": 0.0, "high": 0.1, "n": 30}
    text = card(held_out={"open": {"your benign prompts: a|b\nc": rate}})
    assert r"| your benign prompts: a\|b c | 0.0 % |" in text


@pytest.mark.parametrize(
    ("spec", "base"),
    [
        ("org/model", "org/model"),
        ("org/model@main", "org/model"),
        ("/home/me/model", None),
        ("./model", None),
        ("builtin:smollm2-135m", None),
        ("model", None),
    ],
)
def test_only_a_model_of_the_hub_is_named_as_base(spec: str, base: str | None) -> None:
    head = card(spec).split("---")[1]
    assert ("base_model:" in head) == (base is not None)
    if base is not None:
        assert f'base_model: "{base}"\n' in head


def test_a_folder_here_is_no_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "base_model" not in card("out/model")


def test_versions_that_are_not_known(tmp_path: Path) -> None:
    found: AlignerArtifact = tiny_artifact(tiny_model(), tiny_tokenizer())
    bare = replace(found, provenance=found.provenance.model_copy(update={"versions": {}, "prompts": {}}))
    assert "inferaligner -" in model_card(bare)


def test_places_of_a_gate_are_told_together() -> None:
    grid = [(layer, offset) for layer in (12, 14, 16) for offset in (0, 5)]
    assert describe_reads(grid) == "layers 12, 14 and 16 at tokens -1 and -6"
    assert describe_reads([(3, 0)]) == "layer 3 at token -1"
    assert describe_reads([(3, 0), (4, 0), (4, 2)]) == "layer 3 at token -1; layer 4 at tokens -1 and -3"


def test_begun_answers_and_the_shift_between_batches_are_reported() -> None:
    rate = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 90}
    opened = {"content, harmful": rate, "opener, ordinary": {**rate, "value": 0.01}}
    shift = {"largest_shift": 0.0312, "prompts": 32, "near_threshold": 5, "of": 700}
    plain = card(**CALIBRATION)
    assert "Begun answers" not in plain and "batch" not in plain
    text = card(**CALIBRATION, ends={"held_out": {"open": opened}}, batch_shift=shift)
    assert "| the begun answer is the prompt: harmful | 80.0 % | 70.0 % to 90.0 % | 90 |" in text
    assert "| neutral begun answer behind prompts: ordinary | 1.0 % |" in text
    assert "moved by at most 0.031" in text and "5 of 700 ordinary prompts" in text
