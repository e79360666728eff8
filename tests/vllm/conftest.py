"""Settings that vLLM reads at its import: one process, one thread, little memory."""

from __future__ import annotations

import os

import pytest

os.environ.update(
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="ERROR",
    VLLM_NO_USAGE_STATS="1",
    OMP_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",
)

if os.environ.get("VLLM_USE_V2_MODEL_RUNNER") == "1":
    from tests.support.interpreted_triton import install

    install()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs the second runner's tests first: they take minutes, and no worker waits for them at the end."""
    items.sort(key=lambda item: item.path.name != "test_runner_v2.py")
