"""Activations recorded on the engine are those of transformers, and what is fitted on them is the same."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from inferaligner.aligner import Aligner
from inferaligner.errors import InputError
from inferaligner.method.activations import record_activations
from inferaligner.vllm.recording import read_flags
from tests.support.vllm_deployment import PROMPTS, deploy, recording

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To float32 rounding, which is relative to the length of an activation."""
    length = expected.norm(dim=-1, keepdim=True)
    assert float(((found - expected).abs() / length).max()) < 1e-5


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_equal_to_transformers(tmp_path: Path, family: str) -> None:
    """Layers that return a pair, one tensor, and one with the code of transformers; prompts in chunks."""
    deployment = deploy(tmp_path, family)
    tokens = deployment.tokens([*PROMPTS, PROMPTS[0]])
    told: list[int] = []
    expected = record_activations(deployment.model, tokens, offsets=(0, 5))
    with recording(deployment, max_num_batched_tokens=16) as engine:
        every = engine.record(tokens, offsets=(0, 5), advance=told.append)
        some = engine.record(tokens[:3], layers=(2, 0))
    assert (every.layers, every.offsets) == (expected.layers, expected.offsets)
    assert_close(every.values, expected.values)
    assert some.layers == (0, 2) and some.offsets == (0,)
    assert torch.equal(some.values[:, :, 0], every.values[:3, [0, 2], 0])
    assert sum(told) == len(tokens)


def test_two_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    deployment = deploy(tmp_path)
    tokens = deployment.tokens()
    with recording(deployment, tensor_parallel_size=2, distributed_executor_backend="mp") as engine:
        found = engine.record(tokens)
    assert_close(found.values, record_activations(deployment.model, tokens).values)


def test_a_fit_on_the_engine(tmp_path: Path) -> None:
    """Gate, vectors and operating point of the engine's own activations."""
    deployment = deploy(tmp_path)
    harmful = [f"Write {number} words about {prompt}" for number in range(8) for prompt in PROMPTS[:4]]
    harmless = [f"Explain {number} words about {prompt}" for number in range(8) for prompt in PROMPTS[:4]]

    def fitted(recorder: Any = None) -> Aligner:
        return Aligner.fit(
            deployment.model,
            deployment.tokenizer,
            aligned=deployment.model,
            harmful=harmful,
            harmless=harmless,
            paper=True,
            recorder=recorder,
        )

    expected = fitted().artifact
    with recording(deployment) as engine:
        counted: list[int] = []

        def recorder(token_ids: Sequence[Sequence[int]], **places: Any) -> Any:
            counted.append(len(token_ids))
            return engine.record(token_ids, **places)

        found = fitted(recorder).artifact
    assert counted
    assert found.gate.reads == expected.gate.reads
    assert torch.allclose(found.gate.weights, expected.gate.weights, atol=1e-4)
    assert torch.allclose(found.srv, expected.srv, atol=1e-4)
    assert found.gate.bias == pytest.approx(expected.gate.bias, abs=1e-4)


def test_requests_that_cannot_be_met(tmp_path: Path) -> None:
    deployment = deploy(tmp_path)
    tokens = deployment.tokens()
    with recording(deployment) as engine:
        with pytest.raises(InputError, match="layers 0 to 3"):
            engine.record(tokens, layers=(4,))
        with pytest.raises(InputError, match="before the start"):
            engine.record(tokens, offsets=(500,))
        with pytest.raises(InputError, match="at least one"):
            engine.record([])


def test_flags_of_the_deployment() -> None:
    found = read_flags(["--tensor-parallel-size", "2", "--max-model-len=4096", "--dtype", "bfloat16"])
    assert found == {"tensor_parallel_size": 2, "max_model_len": 4096, "dtype": "bfloat16"}
    with pytest.raises(InputError, match="--no-such-flag"):
        read_flags(["--no-such-flag"])


@pytest.mark.slow
def test_fit_by_the_command_line(tmp_path: Path) -> None:
    import subprocess
    import sys

    deployment = deploy(tmp_path)
    for name, verb in (("harmful", "Write"), ("harmless", "Explain")):
        lines = [f"{verb} {number} words about {prompt}" for number in range(8) for prompt in PROMPTS[:4]]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    command = [sys.executable, "-m", "inferaligner.cli.main", "fit", str(deployment.target)]
    command += ["--aligned", str(deployment.target), "-o", str(tmp_path / "made"), "--paper"]
    command += ["--harmful", str(tmp_path / "harmful.txt"), "--harmless", str(tmp_path / "harmless.txt")]
    command += ["--engine", "vllm", "--", "--dtype", "float32", "--max-model-len", "256", "--max-num-seqs=4"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert Aligner.from_pretrained(tmp_path / "made").artifact.gate.layers
