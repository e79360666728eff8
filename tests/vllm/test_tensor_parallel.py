"""Two workers in processes of their own, each with half of every layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.vllm_deployment import DEEP_READS, deploy, engine, generate, score_of

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")


@pytest.mark.parametrize("layers", [(2, 3), (0, 3)], ids=["one pass", "replayed"])
def test_two_ranks_decide_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: Any) -> None:
    from inferaligner.vllm import gate_of

    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    deployment = deploy(tmp_path, reads=DEEP_READS, layers=layers)
    with engine(deployment, tensor_parallel_size=2, distributed_executor_backend="mp") as llm:
        outputs = generate(llm, deployment.tokens())
    seen = set()
    for output in outputs:
        decision, answer = deployment.expected(output.prompt_token_ids, 8)
        assert gate_of(output)["score"] == score_of(decision, deployment)
        assert gate_of(output)["open"] == decision.open
        assert list(output.outputs[0].token_ids) == answer
        seen.add(decision.open)
    assert seen == {True, False}


def test_a_worker_without_the_package_does_not_start(tmp_path: Path) -> None:
    deployment = deploy(tmp_path)
    with pytest.raises(ImportError), engine(deployment, worker_cls="not_installed.worker.GatedWorker"):
        pass
