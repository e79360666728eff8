from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferaligner.aligner import Aligner
from inferaligner.models import loading
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.storage.operating_point_record import OperatingPoint
from tests.support.command_line import Run, refused
from tests.support.tiny_aligner import CALIBRATION, PROMPTS, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

PromptFile = Callable[..., Path]


@pytest.fixture
def own(aligner: Path, tmp_path: Path) -> Path:
    """A copy of the aligner that may be changed."""
    return shutil.copytree(aligner, tmp_path / "own")


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object, **__: object) -> None:
        raise RuntimeError("a model was loaded")

    monkeypatch.setattr(loading, "load_model", load)


@pytest.fixture
def score_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes scores as `inferaligner score` does."""

    def write(*scores: object, name: str = "live.jsonl") -> Path:
        file = tmp_path / name
        file.write_text(
            "".join(json.dumps({"prompt": "p", "score": s, "open": False}) + "\n" for s in scores)
        )
        return file

    return write


def point(folder: Path) -> OperatingPoint:
    found = Aligner.from_pretrained(folder).artifact.operating_point
    assert found is not None
    return found


def spread(n: int, top: float = 1.0) -> list[float]:
    return [top - 4 * k / n for k in range(n)]


# -- moving --------------------------------------------------------------------------------------------------


def test_prompts_are_scored_and_the_gate_shuts_on_them(
    run: Run, target: Path, own: Path, prompt_file: PromptFile
) -> None:
    file = prompt_file(*PROMPTS)
    outcome = run("calibrate", own, "--benign", f"mine={file}", "--target", target)
    assert outcome.code == 0, outcome.err
    for words in ("Operating point: bias", "fewer prompts", "mine", "promise of 2.0 %"):
        assert words in outcome.out, outcome.out
    assert "mine: 5 prompts allow a promise of 45.1 % at best" in outcome.err and "149 prompts" in outcome.err
    assert "Written to" in outcome.err
    assert not any(row["open"] for row in run("score", target, "-a", own, "-i", file).rows())
    record = point(own).traffic["mine"]
    assert (record.n, record.open, record.promised) == (5, 0, False)


def test_enough_scores_make_the_promise(run: Run, own: Path, score_file: Callable[..., Path]) -> None:
    before = Aligner.from_pretrained(own).artifact.gate.bias
    outcome = run("calibrate", own, "--scores", score_file(*spread(400)), "--json")
    assert (outcome.code, outcome.err) == (0, "")
    told = outcome.json()
    assert told["written"] is True and told["old_bias"] == before > told["new_bias"]
    assert told["operating_point"]["promised"] is True and told["operating_point"]["max_false_open"] == 0.02
    assert "quantiles" not in told["operating_point"]["traffic"]["live"]
    saved = Aligner.from_pretrained(own).artifact
    assert saved.digest() == told["digest"] and saved.gate.bias == told["new_bias"]
    shown = run("inspect", own)
    for words in ("at most 2.0 % of live opens it", "Moves of the operating point", "live (400)"):
        assert words in shown.out, shown.out


def test_traffics_are_bounded_apart(run: Run, own: Path, score_file: Callable[..., Path]) -> None:
    one = score_file(*spread(400), name="one.jsonl")
    other = score_file(*spread(400, 9.0), name="other.jsonl")
    outcome = run("calibrate", own, "--scores", f"code={other}", "--scores", one, "--max-false-open", 0.02,
                  "--confidence", 0.9)  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = point(own)
    assert {name: record.open for name, record in found.traffic.items()} == {"code": 4, "one": 0}
    assert (found.max_false_open, found.confidence, found.promised) == (0.02, 0.9, True)


def test_prompts_and_scores_go_together(
    run: Run, target: Path, own: Path, prompt_file: PromptFile, score_file: Callable[..., Path]
) -> None:
    outcome = run("calibrate", own, "--benign", prompt_file(*PROMPTS), "--scores", score_file(*spread(400)),
                  "--target", target)  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert set(point(own).traffic) == {"prompts", "live"}
    assert point(own).history[-1].source == "prompts and scores"


@pytest.mark.usefixtures("no_loading")
def test_a_dry_run_changes_nothing(run: Run, own: Path, score_file: Callable[..., Path]) -> None:
    before = {file.name: file.read_bytes() for file in own.iterdir()}
    outcome = run("calibrate", own, "--scores", score_file(*spread(400)), "--dry-run")
    assert outcome.code == 0 and "Operating point: bias" in outcome.out
    assert "Nothing was written" in outcome.err
    assert {file.name: file.read_bytes() for file in own.iterdir()} == before


def test_the_effect_on_other_prompts_is_shown(run: Run, own: Path, score_file: Callable[..., Path]) -> None:
    run("calibrate", own, "--scores", f"old={score_file(*spread(400))}")
    outcome = run("calibrate", own, "--scores", f"new={score_file(*spread(400, -3.0))}")
    assert outcome.code == 0, outcome.err
    assert "more prompts" in outcome.out and "calibrated for before: old" in outcome.out
    assert "keeps no held-out scores" in outcome.err


def test_opening_on_other_ordinary_prompts_is_warned_of(
    run: Run, tmp_path: Path, score_file: Callable[..., Path]
) -> None:
    scores = {"harmful": [1.0, 2.0], "ordinary traffic": [-0.5] * 100}
    calibration = {**CALIBRATION, "held_out_scores": scores}
    made = tiny_aligner(tiny_model("llama"), tiny_tokenizer(), calibration=calibration)
    place = made.save_pretrained(tmp_path / "kept")
    narrow = score_file(*spread(400, -40.0))
    outcome = run("calibrate", place, "--scores", narrow)
    assert outcome.code == 0 and "opens on 100.0% of ordinary prompts" in outcome.err
    assert "held out: harmful" in outcome.out
    shut = run("calibrate", place, "--scores", f"wide={score_file(*spread(400, 80.0))}")
    assert shut.code == 0 and "of ordinary prompts" not in shut.err


def test_the_target_is_the_one_it_was_fitted_on(
    run: Run, target: Path, tmp_path: Path, prompt_file: PromptFile
) -> None:
    made = tiny_aligner(tiny_model("llama"), tiny_tokenizer(), spec=str(target))
    place = made.save_pretrained(tmp_path / "known")
    assert run("calibrate", place, "--benign", prompt_file(*PROMPTS)).code == 0


def test_prompts_the_gate_was_fitted_on_are_left_out(
    run: Run, target: Path, tmp_path: Path, prompt_file: PromptFile
) -> None:
    contrast = load_contrast_set()
    seen = next(p.text for p in contrast.part("extraction") if not p.harmful and "\n" not in p.text)
    made = tiny_aligner(tiny_model("llama"), tiny_tokenizer())
    prompts = {**made.artifact.provenance.prompts, "digest": contrast.digest()}
    made.artifact.provenance.prompts.update(prompts)
    place = made.save_pretrained(tmp_path / "shipped")
    outcome = run("calibrate", place, "--benign", prompt_file(seen, *PROMPTS), "--target", target)
    assert outcome.code == 0, outcome.err
    assert "1 prompts left out" in outcome.err and point(place).traffic["prompts"].n == len(PROMPTS)


def test_scores_of_a_bias_of_before(run: Run, own: Path, score_file: Callable[..., Path]) -> None:
    file = score_file(*spread(400))
    before = Aligner.from_pretrained(own).artifact.gate.bias
    assert run("calibrate", own, "--scores", file, "--max-false-open", 0.05).code == 0
    moved = Aligner.from_pretrained(own).artifact.gate.bias
    os.utime(file, (1, 1))
    refused(run("calibrate", own, "--scores", file), "before the gate was set", "--scored-bias")
    outcome = run("calibrate", own, "--scores", file, f"--scored-bias={before}")
    assert outcome.code == 0, outcome.err
    assert Aligner.from_pretrained(own).artifact.gate.bias == pytest.approx(moved, abs=1e-4)


# -- drift ---------------------------------------------------------------------------------------------------


@pytest.fixture
def calibrated(run: Run, own: Path, score_file: Callable[..., Path]) -> Path:
    assert run("calibrate", own, "--scores", f"mine={score_file(*spread(400))}").code == 0
    return own


@pytest.mark.usefixtures("no_loading")
def test_drift_is_told_and_nothing_changed(
    run: Run, calibrated: Path, score_file: Callable[..., Path]
) -> None:
    before = (calibrated / "aligner.json").read_bytes()
    same, shifted = score_file(*spread(300, 0.0)), score_file(*spread(300, 2.0), name="late.jsonl")
    outcome = run("calibrate", calibrated, "--scores", same, "--scores", f"mine={shifted}", "--drift")
    assert outcome.code == 0, outcome.err
    assert "live: NO DRIFT" in outcome.err and "mine: EXCEEDED" in outcome.err
    assert (calibrated / "aligner.json").read_bytes() == before


def test_drift_as_json(
    run: Run, target: Path, calibrated: Path, score_file: Callable[..., Path], prompt_file: PromptFile
) -> None:
    outcome = run("calibrate", calibrated, "--scores", score_file(*spread(300, 0.0)), "--benign",
                  prompt_file(*PROMPTS), "--target", target, "--drift", "--json")  # fmt: skip
    assert outcome.code == 0, outcome.err
    found: dict[str, dict[str, Any]] = {drift["name"]: drift for drift in outcome.json()["drift"]}
    assert found["live"]["against"] == ["mine"] and found["live"]["n_then"] == 400
    assert found["live"]["exceeded"] is False and 0 <= found["live"]["p_value"] <= 1
    assert found["prompts"]["n"] == 5


@pytest.mark.usefixtures("no_loading")
def test_drift_that_cannot_be_told(
    run: Run, own: Path, calibrated: Path, aligner: Path, score_file: Callable[..., Path]
) -> None:
    file = score_file(*spread(300))
    refused(run("calibrate", aligner, "--scores", file, "--drift"), "calibrate DIR --benign FILE")
    refused(run("calibrate", calibrated, "--scores", f"other={file}", "--drift"), "'other'", "'mine'")
    refused(run("calibrate", calibrated, "--scores", file, "--drift", "--max-false-open", 0.1), "leave out")


# -- refused before a model is loaded ------------------------------------------------------------------------


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "--benign FILE or scores with --scores FILE"),
        (("--benign", "nowhere.txt"), "nowhere.txt"),
        (("--benign", "=a.txt"), "no name before the '='"),
        (("--benign", "mine="), "names no file after the '='"),
        (("--scores", "=a.jsonl"), "no name before the '='"),
        (("--scores", "nowhere.jsonl"), "nowhere.jsonl cannot be read"),
        (("--scores", "x=a.jsonl", "--scores", "x=b.jsonl"), "names 'x' twice"),
        (("--scores", "x=a.jsonl", "--benign", "x=b.txt"), "both name 'x'"),
        (("--scores", "a.jsonl", "--max-false-open", "0"), "--max-false-open is 0"),
        (("--scores", "a.jsonl", "--confidence", "nan"), "--confidence is nan"),
        (("--benign", "a.txt", "--scored-bias", "1"), "goes with --scores"),
        (("--scores", "a.jsonl", "--scored-bias", "nan"), "finite number"),
    ],
)
def test_options(run: Run, own: Path, options: tuple[str, ...], words: str) -> None:
    refused(run("calibrate", own, *options), words)


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        ('{"prompt": "a"}\n', "no field 'score'"),
        ('{"score": null}\n', "stands for NaN"),
        ('{"score": NaN}\n', "nan"),
    ],
)
def test_score_files(run: Run, own: Path, tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "live.jsonl"
    file.write_text(content)
    before = (own / "aligner.json").read_bytes()
    for extra in ((), ("--drift",)):
        refused(run("calibrate", own, "--scores", file, *extra), "live.jsonl", words)
    assert (own / "aligner.json").read_bytes() == before


@pytest.mark.usefixtures("no_loading")
def test_artifacts(run: Run, own: Path, tmp_path: Path, score_file: Callable[..., Path]) -> None:
    file = score_file(*spread(300))
    refused(run("calibrate", tmp_path / "nothing", "--scores", file), "is not an aligner")
    settings = own / "aligner.json"
    settings.write_text(settings.read_text().replace('"strength": 2.0', '"strength": 3.0'))
    refused(run("calibrate", own, "--scores", file), "altered after it was written")


@pytest.mark.usefixtures("no_loading")
def test_a_missing_target(run: Run, own: Path, prompt_file: PromptFile) -> None:
    refused(
        run("calibrate", own, "--benign", prompt_file("one"), "--target", "builtin:nothing"), "no built-in"
    )


def test_another_model(run: Run, own: Path, other_width: Path, prompt_file: PromptFile) -> None:
    refused_outcome = run("calibrate", own, "--benign", prompt_file(*PROMPTS), "--target", other_width)
    assert refused_outcome.code == 2 and "was fitted on tiny" in refused_outcome.err
