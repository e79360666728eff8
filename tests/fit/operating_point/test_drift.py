from __future__ import annotations

import math

import numpy as np
import pytest

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import CalibrationError, InputError
from inferaligner.fit.operating_point.drift import drift_of
from inferaligner.fit.operating_point.recalibrate import recalibrate
from tests.support.tiny_aligner import tiny_artifact
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def draw(n: int, seed: int, mean: float = 0.0) -> list[float]:
    return [float(score) for score in np.random.default_rng(seed).normal(mean, size=n)]


@pytest.fixture(scope="module")
def old() -> AlignerArtifact:
    return tiny_artifact(tiny_model(), tiny_tokenizer())


@pytest.fixture(scope="module")
def artifact(old: AlignerArtifact) -> AlignerArtifact:
    """Calibrated on two traffics of different means; scores below are as its gate makes them."""
    traffic = {"chat": draw(1000, 0), "code": draw(1000, 1, -4.0)}
    return recalibrate(old, traffic, max_false_open=0.02)


def live(artifact: AlignerArtifact, old: AlignerArtifact, n: int, mean: float = 0.0) -> list[float]:
    """Fresh scores at the artifact's bias."""
    shift = artifact.gate.bias - old.gate.bias
    return [score + shift for score in draw(n, 7, mean)]


def test_the_same_traffic(artifact: AlignerArtifact, old: AlignerArtifact) -> None:
    found = drift_of(artifact, "chat", live(artifact, old, 20_000))
    assert found.against == ("chat",) and (found.n, found.n_then) == (20_000, 1000)
    assert not found.shifted and not found.exceeded and found.promised
    assert found.open.low <= 0.02 and found.limit == 0.02
    assert found.verdict.startswith("NO DRIFT: ")


def test_too_few_to_confirm(artifact: AlignerArtifact, old: AlignerArtifact) -> None:
    found = drift_of(artifact, "chat", live(artifact, old, 20))
    assert found.verdict.startswith("NO DRIFT SEEN") and "20 scores are too few" in found.verdict


def test_more_open_than_promised(artifact: AlignerArtifact, old: AlignerArtifact) -> None:
    found = drift_of(artifact, "chat", live(artifact, old, 500, 1.0))
    assert found.exceeded and found.shifted and found.p_value < 1e-6
    assert found.verdict.startswith("EXCEEDED") and "calibrate again" in found.verdict


def test_a_shift_that_opens_no_more(artifact: AlignerArtifact, old: AlignerArtifact) -> None:
    found = drift_of(artifact, "chat", live(artifact, old, 500, -1.0))
    assert found.shifted and not found.exceeded
    assert found.verdict.startswith("SHIFTED")


def test_which_traffic_it_is_compared_with(artifact: AlignerArtifact, old: AlignerArtifact) -> None:
    scores = live(artifact, old, 100)
    assert drift_of(artifact, "code", scores).against == ("code",)
    assert drift_of(artifact, "today", scores).against == ("chat", "code")
    assert drift_of(artifact, "today", scores).n_then == 2000
    assert drift_of(artifact, "today", scores, against="chat").against == ("chat",)
    with pytest.raises(InputError, match="'chat', 'code'"):
        drift_of(artifact, "today", scores, against="medical")


def test_an_unpromised_limit_is_what_the_prompts_allow(old: AlignerArtifact) -> None:
    small = recalibrate(old, {"chat": draw(20, 0)}, max_false_open=0.02)
    found = drift_of(small, "chat", live(small, old, 100))
    assert not found.promised and found.limit == pytest.approx(1 - 0.05 ** (1 / 20))


def test_an_artifact_without_calibration_scores(old: AlignerArtifact) -> None:
    with pytest.raises(CalibrationError, match="calibrate DIR --benign FILE"):
        drift_of(old, "chat", [1.0])


@pytest.mark.parametrize("scores", [[], [math.nan, 1.0], [math.inf]])
def test_scores_that_are_none(artifact: AlignerArtifact, scores: list[float]) -> None:
    with pytest.raises(InputError, match="chat"):
        drift_of(artifact, "chat", scores)
