"""The vLLM engine gives the results of the transformers engine: decisions, scores and tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inferaligner.method.gate import GateRead
from tests.support.vllm_deployment import DEEP_READS, Deployment, deploy, engine, generate, score_of

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

LENGTH = 8


def assert_equal_to_transformers(deployment: Deployment, outputs: list[Any], length: int = LENGTH) -> None:
    """Decisions, scores to float32 rounding, and every token; both kinds must be among them."""
    from inferaligner.vllm import gate_of

    opened = set()
    for output in outputs:
        decision, answer = deployment.expected(output.prompt_token_ids, length)
        report = gate_of(output)
        assert report["open"] == decision.open
        assert report["score"] == score_of(decision, deployment)
        assert report["action"] == ("steered" if decision.open else "none")
        assert list(output.outputs[0].token_ids) == answer
        steered = answer != deployment.bare(output.prompt_token_ids, length)
        assert steered == decision.open  # else the comparison would be about nothing
        opened.add(decision.open)
    assert opened == {True, False}


@pytest.mark.parametrize(
    ("reads", "layers", "positions"),
    [
        pytest.param((GateRead(1),), (2, 3), "from_gate", id="the paper's gate, steering above it"),
        pytest.param((GateRead(1),), (1, 2), "from_gate", id="steering at the gate's layer"),
        pytest.param(DEEP_READS, (2, 3), "from_gate", id="several layers and positions"),
        pytest.param(DEEP_READS, (0, 1, 3), "from_gate", id="steering below the gate"),
        pytest.param((GateRead(1),), (2, 3), "all", id="all positions"),
        pytest.param(DEEP_READS, (0, 3), "all", id="all positions, steering below the gate"),
    ],
)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="whole prompts"),
        pytest.param({"max_num_batched_tokens": 16}, id="chunks of 16", marks=pytest.mark.slow),
        pytest.param({"max_num_batched_tokens": 5, "max_num_seqs": 3}, id="chunks of 5"),
    ],
)
def test_equal_to_transformers(
    tmp_path: Path, reads: Any, layers: Any, positions: str, options: dict[str, Any]
) -> None:
    deployment = deploy(tmp_path, reads=reads, layers=layers, positions=positions)
    with engine(deployment, **options) as llm:
        outputs = generate(llm, deployment.tokens(), LENGTH)
    assert_equal_to_transformers(deployment, outputs)


@pytest.mark.parametrize(
    "family",
    [
        "llama",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3",
        "phi3",
        "gpt2",
        "gpt_neox",
        "falcon_new",
        "mixtral",
        "qwen3_moe",
        "olmo2",
        "opt",
        "bloom",
    ],
)
def test_families(tmp_path: Path, family: str) -> None:
    settings = {"head_dim": 32} if family in ("qwen3", "gemma2", "gemma3", "qwen3_moe") else {}
    strength = 40.0 if family == "gemma2" else 4.0  # its norms make the residual stream that much longer
    deployment = deploy(tmp_path, family, reads=DEEP_READS, layers=(2, 3), strength=strength, **settings)
    for tokens in deployment.tokens():
        # Before the engine starts: where vLLM takes the code of transformers, it changes its classes.
        deployment.expected(tokens, LENGTH), deployment.bare(tokens, LENGTH)
    with engine(deployment) as llm:
        outputs = generate(llm, deployment.tokens(), LENGTH)
    assert_equal_to_transformers(deployment, outputs)
