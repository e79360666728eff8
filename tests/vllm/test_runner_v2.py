"""The second model runner, which GPUs get, and async scheduling on it: the tests are in `second_runner.py`.

A process of its own, because vLLM decides at its import whether Triton is there (`interpreted_triton.py`).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

ROOT = Path(__file__).parents[2]


def test_on_the_second_runner() -> None:
    pytest.importorskip("triton", reason="the second model runner needs it: make test-vllm")
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "tests/vllm/second_runner.py"],
        cwd=ROOT,
        env={**os.environ, "VLLM_USE_V2_MODEL_RUNNER": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    last = done.stdout.strip().splitlines()[-1]
    assert " passed" in last and "skipped" not in last, last
