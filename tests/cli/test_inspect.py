from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from inferaligner.aligner import Aligner
from inferaligner.method.vectors import cosine
from tests.support.command_line import Run, refused
from tests.support.tiny_aligner import CALIBRATION, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def test_tables(run: Run, aligner: Path) -> None:
    outcome = run("inspect", aligner)
    assert outcome.code == 0, outcome.err
    for words in (
        "LlamaForCausalLM, 4 layers × 32",
        "at most 1.0 % of benign calibration prompts",
        "layer 1 at token -1; layer 2 at token -2",
        "your benign prompts: [my] traffic",
        "70.0 % to 88.0 %",
        "0.950 to 0.990",
        "chosen",
        "gate, steered",
    ):
        assert words in outcome.out, words
    assert outcome.err == ""


def test_json(run: Run, aligner: Path) -> None:
    artifact = Aligner.from_pretrained(aligner).artifact
    told = run("inspect", aligner, "--json").json()
    assert told["steering"] == {
        "layers": [1, 2],
        "strength": 2.0,
        "norm": "difference",
        "positions": "from_gate",
    }
    assert told["gate"]["reads"] == [{"layer": 1, "offset": 0}]
    assert told["held_out"] == CALIBRATION["held_out"]
    assert told["search"] == CALIBRATION["search"]
    assert told["target"]["model"]["width"] == 32
    assert told["vectors"]["cosine"] == pytest.approx(cosine(artifact.srv, artifact.ssv).tolist())
    assert told["vectors"]["ssv_norm"] == pytest.approx(artifact.ssv.norm(dim=-1).tolist())


def test_an_aligner_without_figures_is_shown_too(run: Run, tmp_path: Path) -> None:
    place = tiny_aligner(tiny_model(), tiny_tokenizer(), calibration={}).save_pretrained(tmp_path / "a")
    outcome = run("inspect", place, "--plots", tmp_path / "plots")
    assert outcome.code == 0, outcome.err
    assert "not calibrated" in outcome.out
    assert [file.name for file in (tmp_path / "plots").iterdir()] == ["vectors.png"]


def test_figures_that_are_not_numbers_do_not_stop_it(run: Run, tmp_path: Path) -> None:
    search = CALIBRATION["search"]
    broken = {**search["trials"][0], "cross_entropy": float("nan"), "strength": 0.9}
    calibration = {**CALIBRATION, "search": {**search, "trials": [*search["trials"], broken]}}
    place = tiny_aligner(tiny_model(), tiny_tokenizer(), calibration=calibration)
    folder = place.save_pretrained(tmp_path / "a")
    outcome = run("inspect", folder, "--plots", tmp_path / "plots", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json()["search"]["trials"][-1]["cross_entropy"] is None


def test_plots(run: Run, aligner: Path, tmp_path: Path) -> None:
    folder = tmp_path / "some" / "plots"
    outcome = run("inspect", aligner, "--plots", folder, "--json")
    assert outcome.code == 0, outcome.err
    outcome.json()
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == ["finalists.png", "gates.png", "strength.png", "vectors.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


def test_plots_without_matplotlib(
    run: Run, aligner: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    refused(run("inspect", aligner, "--plots", tmp_path / "plots"), 'pip install "inferaligner[report]"')


def test_plots_that_cannot_be_written(run: Run, aligner: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    refused(run("inspect", aligner, "--plots", file), "is a file")
    refused(run("inspect", aligner, "--plots", file / "below"), "cannot be written")


def test_a_page_with_the_figures(run: Run, aligner: Path, tmp_path: Path) -> None:
    page = tmp_path / "aligner.html"
    outcome = run("inspect", aligner, "--html", page, "--json")
    assert outcome.code == 0, outcome.err
    outcome.json()
    text = page.read_text("utf-8")
    for words in ("Aligner for", "The surface", "surface-finalist-1", "1: 1–2 × 0.3 (chosen)", "SRV and SSV"):
        assert words in text, words
    assert not re.search(r"<(script|link|img|iframe)\b|@import|\bsrc=", text)


def test_a_page_of_an_aligner_without_figures(run: Run, tmp_path: Path) -> None:
    place = tiny_aligner(tiny_model(), tiny_tokenizer(), calibration={}).save_pretrained(tmp_path / "a")
    outcome = run("inspect", place, "--html", tmp_path / "page.html")
    assert outcome.code == 0, outcome.err
    assert "SRV and SSV" in (tmp_path / "page.html").read_text("utf-8")


def test_a_page_that_cannot_be_written(run: Run, aligner: Path, tmp_path: Path) -> None:
    refused(run("inspect", aligner, "--html", tmp_path), "folder")
