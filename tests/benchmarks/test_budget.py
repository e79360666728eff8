"""Steps under a time budget, with steps that are made for the purpose."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from benchmarks.budget import BudgetedRun, Step, StepRecord


def passes(record: StepRecord) -> None:
    record.check("one", None, "fine")


def breaks(record: StepRecord) -> None:
    record.check("before", None)
    raise RuntimeError("no such kernel\nand a long explanation")


def fails(record: StepRecord) -> None:
    record.check("one", "2 is not 3")
    record.check("two", None)


def takes_long(record: StepRecord) -> None:
    record.figures({"half": 1})
    try:
        time.sleep(30)
    except Exception:
        record.figures({"swallowed": True})


def budgeted(file: Path, seconds: float = 60.0) -> BudgetedRun:
    return BudgetedRun(file, {"fact": 1}, seconds, time.monotonic())


def test_every_step_has_its_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deep" / "results.json"
    run = budgeted(file)
    works = {"passes": passes, "breaks": breaks, "fails": fails, "again": passes}
    run.run([Step(name, 1, 10, work) for name, work in works.items()])
    report = json.loads(file.read_text(encoding="utf-8"))
    found = {name: step["status"] for name, step in report["steps"].items()}
    assert found == {"passes": "passed", "breaks": "error", "fails": "failed", "again": "passed"}
    assert report["fact"] == 1
    assert report["steps"]["breaks"]["note"] == "RuntimeError: no such kernel"
    assert report["steps"]["breaks"]["checks"][0]["passed"]
    assert run.exit_code() == 1
    assert "fails: FAILED one: 2 is not 3" in capsys.readouterr().out
    assert [entry.name for entry in file.parent.iterdir()] == ["results.json"]


def test_cut_off_and_skipped(tmp_path: Path) -> None:
    run = budgeted(tmp_path / "results.json", seconds=20)
    begin = time.monotonic()
    run.run([Step("long", 1, 0.3, takes_long), Step("dear", 19.9, 30, passes), Step("cheap", 1, 5, passes)])
    assert time.monotonic() - begin < 10
    assert run.steps["long"]["status"] == "cut off"
    assert run.steps["long"]["half"] == 1 and "swallowed" not in run.steps["long"]
    assert run.steps["dear"]["status"] == "skipped" and "it needs 20 s" in run.steps["dear"]["note"]
    assert run.steps["cheap"]["status"] == "passed"
    assert run.exit_code() == 3


def test_skipped_steps_alone_are_no_failure(tmp_path: Path) -> None:
    run = budgeted(tmp_path / "results.json", seconds=5)
    run.run([Step("cheap", 1, 5, passes), Step("dear", 100, 200, fails)])
    assert run.exit_code() == 0


def test_the_file_is_written_while_a_step_runs(tmp_path: Path) -> None:
    file = tmp_path / "results.json"

    def work(record: StepRecord) -> None:
        record.check("first", None)
        entry = json.loads(file.read_text(encoding="utf-8"))["steps"]["work"]
        assert entry["status"] == "running" and entry["checks"][0]["name"] == "first"

    run = budgeted(file)
    run.run([Step("work", 1, 10, work)])
    assert run.exit_code() == 0, run.steps


def test_resuming_keeps_what_passed(tmp_path: Path) -> None:
    earlier = {"a": {"status": "passed", "checks": [], "mark": 1}, "b": {"status": "error", "checks": []}}
    run = BudgetedRun(tmp_path / "results.json", {}, 60, time.monotonic(), earlier)
    run.run([Step("a", 1, 10, breaks), Step("b", 1, 10, passes)])
    assert run.steps["a"]["mark"] == 1
    assert run.steps["b"]["status"] == "passed"
