"""Progress: done once, told apart when their settings change, stopped when the time is over."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from reproduction.stage_store import Clock, OutOfTime, StageStore

from inferaligner.errors import InputError


@pytest.fixture
def place(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "mathematics", Clock())


def test_a_stage_is_done_once_and_remembers_what_it_found(place: StageStore) -> None:
    calls: list[int] = []

    def work() -> dict[str, int]:
        calls.append(1)
        return {"rows": 3}

    assert place.stage("rows", {"seed": 0}, work) == {"rows": 3}
    assert place.stage("rows", {"seed": 0}, work) == {"rows": 3}
    assert calls == [1]
    assert list(place.seconds()) == ["rows"]


def test_a_stage_that_fails_is_not_done(place: StageStore) -> None:
    def fail() -> None:
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        place.stage("fit", {}, fail)
    assert place.stage("fit", {}, lambda: "now") == "now"


def test_other_settings_are_an_error_that_names_them(place: StageStore) -> None:
    place.stage("train", {"epochs": 1, "seed": 0}, lambda: None)
    with pytest.raises(InputError, match=r"done with other epochs.*--redo train"):
        place.stage("train", {"epochs": 2, "seed": 0}, lambda: None)
    place.forget(["train"])
    assert place.stage("train", {"epochs": 2, "seed": 0}, lambda: 5) == 5


def test_a_stage_whose_output_has_gone_is_done_again(place: StageStore) -> None:
    output = place.folder / "model"

    def work() -> None:
        output.write_text("weights")

    place.stage("train", {}, work, [output])
    output.unlink()
    place.stage("train", {}, work, [output])
    assert output.exists()


def test_forgetting_removes_what_the_stage_wrote(place: StageStore) -> None:
    (place.folder / "train").mkdir(parents=True)
    place.stage("train", {}, lambda: None)
    place.forget(["train"])
    assert not (place.folder / "train").exists()
    with pytest.raises(InputError, match="no such stage"):
        place.forget(["train"])


def test_no_stage_begins_when_the_time_is_over(tmp_path: Path) -> None:
    place = StageStore(tmp_path / "mathematics", Clock(minutes=0.0))
    with pytest.raises(OutOfTime, match=r"before the stage fit\. Run the same command again"):
        place.stage("fit", {}, lambda: None)
    done = StageStore(tmp_path / "mathematics", Clock())
    done.stage("fit", {}, lambda: 1)
    assert place.stage("fit", {}, lambda: 2) == 1


def test_experiments_of_a_family_lie_side_by_side(place: StageStore) -> None:
    assert place.of("figure-4").folder == place.folder.parent / "figure-4"


def test_two_at_once_do_a_stage_once(tmp_path: Path) -> None:
    """Experiments that share an aligned sibling, run side by side."""
    done: list[int] = []

    def work() -> int:
        time.sleep(0.2)
        done.append(1)
        return 7

    def run() -> int:
        found: int = StageStore(tmp_path, Clock()).stage("train", {"a": 1}, work)
        return found

    with ThreadPoolExecutor(3) as pool:
        assert [future.result() for future in [pool.submit(run) for _ in range(3)]] == [7, 7, 7]
    assert len(done) == 1
