"""`python -m benchmarks.gpu`, tiny, on the CPU, where torch and transformers are all there is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from benchmarks.gpu import FULL, LIMITS, TINY, Workbench

from tests.support import golden

ROOT = Path(__file__).parents[2]
NOT_NEEDED = ("pydantic", "pytest", "hypothesis", "peft", "gguf", "accelerate", "datasets")
COMMAND = f"""
import sys
sys.modules.update(dict.fromkeys({NOT_NEEDED!r}))
from benchmarks import gpu
FAULT
raise SystemExit(gpu.main())
"""
# Closed rows of a mixed batch are steered while decoding.
STEERS_CLOSED_ROWS = """
import torch
from inferaligner.steering.batch_state import PromptScope
PromptScope.acting = property(lambda self: torch.ones_like(self.open))
"""
RUNS_OUT_OF_MEMORY = """
import torch
from benchmarks import overhead
def make_work(*_):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 99 GiB.")
overhead.make_work = make_work
"""


def begin(file: Path, *arguments: str, fault: str = "") -> subprocess.Popen[str]:
    paths = os.pathsep.join((str(ROOT / "src"), str(ROOT)))
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND.replace("FAULT", fault), "--tiny", "--json", str(file), *arguments],
        env={**os.environ, "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
    )


def read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path) -> None:
    file = tmp_path / "new" / "gpu.json"
    run = begin(file, "--seconds", "2000")  # limits grow with it: other work may have the processor too
    output, _ = run.communicate(timeout=2000)
    assert run.returncode == 0, output
    assert "TINY SIZES" in output
    report = read(file)
    assert report["tiny"] is True
    assert report["machine"]["torch"] == torch.__version__
    assert report["machine"]["transformers"] == transformers.__version__
    expected = [step.name for step in Workbench(TINY, torch.device("cpu")).steps(1.0)]
    assert list(report["steps"]) == expected
    for name, entry in report["steps"].items():
        assert entry["status"] == "passed", (name, entry)
        assert entry["checks"] or entry["ratios"], name
        assert name in output
        for metric, arms in entry.get("ratios", {}).items():
            assert set(arms) == set(entry["seconds_by_round"][metric])
            assert all(spread["median"] > 0 for spread in arms.values())
    assert len(report["steps"]["golden bfloat16"]["checks"]) == len(golden.CHECKS)
    assert set(report["steps"]["overhead batch 2"]["ratios"]["decode"]) == {
        "bare",
        "gate closed",
        "gate open",
    }

    again = begin(file, "--resume")
    output, _ = again.communicate(timeout=600)
    assert again.returncode == 0 and output.count("passed in the earlier run") == len(expected), output
    assert read(file)["steps"] == report["steps"]


def test_what_was_done_outlives_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    run = begin(file, "--only", "golden")
    try:
        until = time.monotonic() + 300
        while time.monotonic() < until and run.poll() is None:
            steps = read(file)["steps"] if file.exists() else {}
            if len(steps) == 2 and steps["golden bfloat16"]["checks"]:
                break
            time.sleep(0.05)
        assert run.poll() is None, "the run must still be at its second step"
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()
    steps = read(file)["steps"]
    assert steps["golden float32"]["status"] == "passed"
    assert steps["golden bfloat16"]["status"] == "running"
    assert all(check["passed"] for step in steps.values() for check in step["checks"])


def test_a_broken_promise_ends_with_1(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    run = begin(file, "--only", "golden float32", fault=STEERS_CLOSED_ROWS)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 1, output
    entry = read(file)["steps"]["golden float32"]
    assert entry["status"] == "failed"
    failed = {check["name"]: check["note"] for check in entry["checks"] if not check["passed"]}
    assert "expected no bit" in failed["llama: open rows follow the equation"]
    assert any(check["passed"] for check in entry["checks"]), "the other checks must have run"
    assert "FAILED llama: open rows follow the equation" in output


def test_a_step_without_memory_leaves_the_others_theirs(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    run = begin(file, "--only", "overhead batch", "--only", "extraction", fault=RUNS_OUT_OF_MEMORY)
    output, _ = run.communicate(timeout=300)
    assert run.returncode == 3, output
    steps = read(file)["steps"]
    assert steps["overhead batch 1"]["status"] == steps["overhead batch 2"]["status"] == "error"
    assert "OutOfMemoryError: CUDA out of memory" in steps["overhead batch 1"]["note"]
    assert steps["extraction"]["status"] == "passed"


def test_bad_input(tmp_path: Path) -> None:
    given = {
        ("--only", "golden float64"): "Steps: golden float32, golden bfloat16",
        ("--json", str(tmp_path)): "cannot write the results there",
    }
    runs = [(begin(tmp_path / "gpu.json", *arguments), message) for arguments, message in given.items()]
    for run, message in runs:
        output, _ = run.communicate(timeout=300)
        assert run.returncode not in (0, 3) and message in output and "Traceback" not in output


def test_the_limits_fit_the_budget() -> None:
    """No step can take the time of a more important one, up to the extraction."""
    names = [step.name for step in Workbench(FULL, torch.device("cpu")).steps(1.0)]
    important = [step for step in Workbench(FULL, torch.device("cpu")).steps(1.0)][
        : names.index("extraction") + 1
    ]
    assert [step.name for step in important][:2] == ["golden float32", "golden bfloat16"]
    assert sum(step.limit for step in important) <= 540
    assert set(FULL.needs) == set(LIMITS)
    assert all(FULL.needs[kind] <= LIMITS[kind] for kind in LIMITS)
