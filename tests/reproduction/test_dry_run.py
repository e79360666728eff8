"""One family of the paper through every stage of a domain experiment, an ablation and a summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from reproduction.dry_run import check_recipes, shrunk
from reproduction.experiment_stages import Request, chosen_families, run_experiment
from reproduction.recipe import ScaleConfig, read_scale_config
from reproduction.run_context import Place
from reproduction.stage_store import OutOfTime

from inferaligner.errors import InputError

pytest.importorskip("trl", reason="TRL is not installed: make test-extras")
pytestmark = [pytest.mark.slow, pytest.mark.extras]

_FAMILY = "internlm-7b"
"""Has the most of its own: a strength, so a second fit, and a template."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("dry")
    return Place(None, folder / "work", folder / "results", examples=True)


@pytest.fixture(scope="module")
def config(place: Place) -> ScaleConfig:
    return shrunk(read_scale_config("paper"), [_FAMILY], place.work.parent / "models")


@pytest.fixture(scope="module")
def done(config: ScaleConfig, place: Place) -> Path:
    """The results of a finished domain experiment."""
    run_experiment(Request("mathematics", (_FAMILY,), place), config)
    return place.results / "paper"


def test_a_domain_experiment_ends_in_json_a_page_and_a_figure(done: Path) -> None:
    found = json.loads((done / f"mathematics-{_FAMILY}.json").read_text("utf-8"))
    assert set(found["methods"]) == {
        "none",
        *read_scale_config("paper").domain("mathematics").methods,
        *read_scale_config("paper").scale.more_methods,
    }
    assert {row["suite"] for row in found["rows"]} >= {"contrast-harmful", "contrast-jailbreak", "arithmetic"}
    assert found["data"]["corpora"]["ultrachat"]["trained"] == 4
    assert found["training"]["train"]["steps"] > 0 and found["training"]["safety-sft"]["steps"] > 0
    assert "arithmetic" in found["base"]["domain against base"]
    assert "response" not in json.dumps(found), "results are committed, so no answer may be in them"
    assert (done / f"mathematics-{_FAMILY}.md").read_text("utf-8").startswith("# Mathematics, InternLM-7B")
    assert (done / f"mathematics-{_FAMILY}-outcomes.svg").is_file()


def test_the_papers_own_strength_is_used(done: Path, place: Place) -> None:
    aligner = place.work / "paper" / _FAMILY / "mathematics" / "fit-paper" / "aligner" / "aligner.json"
    assert json.loads(aligner.read_text("utf-8"))["steering"]["strength"] == 8.0


def test_a_second_run_does_nothing_again(
    done: Path, config: ScaleConfig, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.stat().st_mtime_ns for file in place.work.rglob("*.done.json")}
    run_experiment(Request("mathematics", (_FAMILY,), place), config)
    assert {file: file.stat().st_mtime_ns for file in place.work.rglob("*.done.json")} == before


def test_figure_four_and_the_summaries_build_on_it(done: Path, config: ScaleConfig, place: Place) -> None:
    for name in ("figure-4", "confound"):
        run_experiment(Request(name, (_FAMILY,), place), config)
    assert "| contrast-harmful | aligned |" in (done / f"figure-4-{_FAMILY}.md").read_text("utf-8")
    assert (done / f"figure-4-{_FAMILY}-contrast-harmful-refusal.svg").is_file()
    told = (done / f"confound-{_FAMILY}.md").read_text("utf-8")
    assert "the paper's pair | matched prompts" in told and "\n| contrast-harmful | " in told
    for name in ("table-1", "figure-5"):
        run_experiment(Request(name, (_FAMILY,), place), config)
    table = (done / f"table-1-{_FAMILY}.md").read_text("utf-8")
    assert "## Mathematics" in table and "| contrast-harmful, compliance |" in table
    assert (done / "figure-5.svg").is_file()


def test_the_time_is_over_between_stages(config: ScaleConfig, place: Place, tmp_path: Path) -> None:
    late = Place(None, tmp_path, tmp_path, examples=True)
    with pytest.raises(OutOfTime):
        run_experiment(Request("mathematics", (_FAMILY,), late, minutes=0.0), config)


def test_a_summary_of_nothing(config: ScaleConfig, tmp_path: Path) -> None:
    nothing = Place(None, tmp_path, tmp_path, examples=True)
    with pytest.raises(InputError, match="No experiment that table-1 summarizes has been run"):
        run_experiment(Request("table-1", (_FAMILY,), nothing), config)


def test_a_family_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no family 'llama9'"):
        check_recipes("paper", ("llama9",), (), tmp_path)
    assert chosen_families(read_scale_config("paper").scale, ()) == ["llama2-7b"]
