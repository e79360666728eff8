from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import CalibrationError
from inferaligner.fit.operating_point.recalibrate import recalibrate
from inferaligner.storage.model_card import model_card
from inferaligner.storage.operating_point_record import OperatingPoint
from tests.support.tiny_aligner import CALIBRATION, tiny_artifact
from tests.support.tiny_models import tiny_model, tiny_tokenizer

SCORES = list(np.random.default_rng(0).normal(size=400))


@pytest.fixture(scope="module")
def artifact() -> AlignerArtifact:
    return tiny_artifact(tiny_model(), tiny_tokenizer())


def point(artifact: AlignerArtifact) -> OperatingPoint:
    found = artifact.operating_point
    assert found is not None
    return found


def test_only_the_bias_moves(artifact: AlignerArtifact) -> None:
    moved = recalibrate(artifact, {"mine": SCORES}, max_false_open=0.02, confidence=0.9)
    assert torch.equal(moved.gate.weights, artifact.gate.weights) and moved.gate.reads == artifact.gate.reads
    assert torch.equal(moved.srv, artifact.srv) and moved.steering == artifact.steering
    shift = moved.gate.bias - artifact.gate.bias
    assert sum(score + shift > 0 for score in SCORES) == point(moved).traffic["mine"].open == 4
    assert point(moved).promised and point(moved).rule == "traffic"
    assert moved.digest() != artifact.digest()


def test_the_threshold_falls_as_well_as_rises(artifact: AlignerArtifact) -> None:
    lower = recalibrate(artifact, {"mine": [score - 20 for score in SCORES]}, max_false_open=0.02)
    assert lower.gate.bias > artifact.gate.bias
    assert recalibrate(artifact, {"mine": SCORES}, max_false_open=0.02).gate.bias < artifact.gate.bias


def test_moving_twice_is_moving_once_to_the_last(artifact: AlignerArtifact) -> None:
    once = recalibrate(artifact, {"mine": SCORES}, max_false_open=0.02)
    detour = recalibrate(artifact, {"other": [score + 5 for score in SCORES]}, max_false_open=0.1)
    shift = detour.gate.bias - artifact.gate.bias
    back = recalibrate(detour, {"mine": [score + shift for score in SCORES]}, max_false_open=0.02)
    assert back.gate.bias == pytest.approx(once.gate.bias, abs=1e-4)
    assert back.calibration["operating_point"]["traffic"].keys() == {"mine"}


def test_the_history_grows(artifact: AlignerArtifact) -> None:
    one = recalibrate(artifact, {"a": SCORES, "b": SCORES[:50]}, max_false_open=0.02, source="scores")
    two = recalibrate(one, {"a": SCORES}, max_false_open=0.05, confidence=0.9)
    first, second = point(two).history
    assert (first.old_bias, first.new_bias) == (artifact.gate.bias, one.gate.bias)
    assert (second.old_bias, second.new_bias) == (one.gate.bias, two.gate.bias)
    assert first.traffic == {"a": 400, "b": 50} and second.traffic == {"a": 400}
    assert (first.source, second.source) == ("scores", "prompts")
    assert not first.promised and second.promised  # fifty prompts cannot promise 2 %
    assert (second.max_false_open, second.confidence) == (0.05, 0.9)


def test_what_is_not_given_is_what_traffic_was_promised_before(artifact: AlignerArtifact) -> None:
    one = recalibrate(artifact, {"a": SCORES})  # its 1 % was said of the contrast set, not of traffic
    assert (point(one).max_false_open, point(one).confidence) == (0.02, 0.95)
    two = recalibrate(recalibrate(one, {"a": SCORES}, max_false_open=0.3, confidence=0.8), {"a": SCORES})
    assert (point(two).max_false_open, point(two).confidence) == (0.3, 0.8)
    bare = replace(artifact, calibration={})
    assert point(recalibrate(bare, {"a": SCORES})).max_false_open == 0.02


def test_held_out_rates_are_told_again(artifact: AlignerArtifact) -> None:
    bias = artifact.gate.bias
    kept = {"harmful": [score + 3 - bias for score in SCORES], "math": [score - bias for score in SCORES]}
    scored = replace(artifact, calibration={**CALIBRATION, "held_out_scores": kept})
    moved = recalibrate(scored, {"mine": [score + 1 for score in SCORES]}, max_false_open=0.02)
    held_out: dict[str, Any] = moved.calibration["held_out"]
    shift = moved.gate.bias - bias
    assert held_out["open"]["harmful"]["value"] == sum(s + 3 + shift > 0 for s in SCORES) / 400
    assert set(held_out["open"]) == {"harmful", "math", "your benign prompts: mine"}
    assert held_out["auroc"] == CALIBRATION["held_out"]["auroc"]
    assert 0.85 < held_out["auroc_benign"]["mine"]["low"] < held_out["auroc_benign"]["mine"]["value"] < 0.97


def test_rates_of_another_threshold_are_not_kept(artifact: AlignerArtifact) -> None:
    moved = recalibrate(artifact, {"mine": SCORES})
    assert set(moved.calibration["held_out"]["open"]) == {"your benign prompts: mine"}


def test_saved_and_read_again(artifact: AlignerArtifact, tmp_path: Path) -> None:
    folder = artifact.write(tmp_path / "a", model_card(artifact))
    (folder / "notes.txt").write_text("mine")
    moved = recalibrate(AlignerArtifact.read(folder), {"mine": SCORES}, max_false_open=0.02)
    vectors = (folder / "vectors.safetensors").stat().st_ino
    moved.update(folder, model_card(moved))
    again = AlignerArtifact.read(folder)
    assert again.digest() == moved.digest() and again.gate.bias == moved.gate.bias
    assert (folder / "vectors.safetensors").stat().st_ino == vectors
    assert (folder / "notes.txt").read_text() == "mine"
    card = (folder / "README.md").read_text()
    assert "at most 2.0 % of mine opens it" in card and "| mine | 3 | 400 |" in card
    assert "since the fit: 1, the last on" in card
    assert sorted(f.name for f in folder.iterdir()) == [
        "README.md", "aligner.json", "notes.txt", "vectors.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("traffic", "words"),
    [({}, "`benign`"), ({"mine": []}, "'mine'"), ({"mine": [0.0, math.nan]}, "1 of 2 scores of 'mine'")],
)
def test_what_cannot_be_moved_to(
    artifact: AlignerArtifact, traffic: dict[str, list[float]], words: str
) -> None:
    with pytest.raises(CalibrationError, match=words):
        recalibrate(artifact, traffic)
