"""The monitor through the library and the command line: fitted, kept, applied, shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from inferaligner import aligner as aligner_module
from inferaligner.aligner import Aligner
from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import ArtifactError, InputError
from inferaligner.fit.strength import search_prompts
from inferaligner.judges import Judgement
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.models.generation import generate_answers
from inferaligner.storage.model_card import model_card
from tests.support.tiny_aligner import HARMFUL, HARMLESS, PROMPTS, eager_monitor, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def watching() -> Aligner:
    return tiny_aligner(tiny_model(), tiny_tokenizer(), monitor=eager_monitor())


def opened(aligner: Aligner, **options: Any) -> list[Any]:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with aligner.apply(model, tokenizer, **options) as guard:
        list(generate_answers(model, tokenizer, PROMPTS, max_new_tokens=4, decisions=lambda: guard.decisions))
        return [decision.opened_at for decision in guard.decisions]


def test_apply_uses_the_monitor_unless_told_otherwise(watching: Aligner) -> None:
    assert set(opened(watching)) == {"prompt", 2}
    assert set(opened(watching, monitor=False)) == {"prompt", None}
    assert watching.plan().monitor is watching.artifact.monitor
    assert watching.plan(monitor=False).monitor is None


def test_round_trip(watching: Aligner, tmp_path: Path) -> None:
    place = watching.save_pretrained(tmp_path / "aligner")
    loaded = Aligner.from_pretrained(place)
    mine, read = watching.artifact.monitor, loaded.artifact.monitor
    assert mine is not None and read is not None
    assert torch.equal(read.weights, mine.weights)
    assert (read.kind, read.layer, read.window, read.centre, read.bias) == ("test", 1, 2, 1.0, -0.75)
    assert loaded.artifact.digest() == watching.artifact.digest()
    assert opened(loaded) == opened(watching)


def test_without_a_monitor_the_artifact_is_what_it_was(watching: Aligner, tmp_path: Path) -> None:
    """Older versions read it, and older artifacts are read; one with a monitor they must refuse."""
    plain = tiny_aligner(tiny_model(), tiny_tokenizer()).save_pretrained(tmp_path / "plain")
    settings = json.loads((plain / "aligner.json").read_text())
    assert settings["schema_version"] == 1 and "monitor" not in settings
    assert AlignerArtifact.read(plain).monitor is None
    with_one = watching.save_pretrained(tmp_path / "with")
    assert json.loads((with_one / "aligner.json").read_text())["schema_version"] == 2


@pytest.mark.parametrize("wrong", [{"layer": 4}, {"weights": torch.zeros(16)}])
def test_a_monitor_of_another_shape(wrong: dict[str, Any]) -> None:
    fields = {"kind": "test", "layer": 1, "window": 2, "weights": torch.zeros(32), "centre": 0.0, "bias": 0.0}
    with pytest.raises(ArtifactError, match="The monitor does not fit"):
        tiny_aligner(tiny_model(), tiny_tokenizer(), monitor=AnswerMonitor(**{**fields, **wrong}))


@pytest.fixture(scope="module")
def fitted() -> Aligner:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(aligner_module, "judge", lambda answer: Judgement("refusal"))
        patch.setattr(search_prompts, "GENERATED", 2)
        return Aligner.fit(
            tiny_model(),
            tiny_tokenizer(),
            aligned=tiny_model(seed=1),
            harmful=HARMFUL,
            harmless=HARMLESS,
            benign={"mine": PROMPTS},
            gate_layer=1,
            steer_layers=[2],
            strength=0.1,
            monitor=True,
            monitor_tokens=5,
        )


def test_fit(fitted: Aligner) -> None:
    artifact = fitted.artifact
    monitor, point = artifact.monitor, artifact.monitor_point
    assert monitor is not None and point is not None
    assert monitor.layer <= 2
    assert set(point.traffic) == {"contrast set", "mine"}
    assert point.traffic["mine"].n == len(PROMPTS)
    assert not point.promised, "a handful of answers promises nothing"
    assert all(record.open == 0 for record in point.traffic.values())
    kept = artifact.calibration["monitor"]
    assert kept["tokens"] == 5 and kept["tried"] == len(kept["candidates"]) * 3
    assert "Answers are read while they are generated" in model_card(artifact)


def test_the_answers_it_was_calibrated_on_stay_closed(fitted: Aligner) -> None:
    """The same prompts, answered under the guard: none opens the monitor."""
    assert not [at for at in opened(fitted) if isinstance(at, int)]


def test_options_that_cannot_be() -> None:
    with pytest.raises(InputError, match="`monitor_tokens` is 0"):
        Aligner.fit(
            tiny_model(),
            tiny_tokenizer(),
            aligned=tiny_model(seed=1),
            harmful=HARMFUL,
            harmless=HARMLESS,
            monitor=True,
            monitor_tokens=0,
        )
