"""Compiled models: the operations are part of the graph, and a graph without them is never taken for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from inferaligner.aligner import Aligner
from tests.support.vllm_deployment import DEEP_READS, Deployment, deploy, engine, generate, score_of

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

COMPILED = {"enforce_eager": False, "max_num_batched_tokens": 48, "enable_prefix_caching": True}


@pytest.fixture(autouse=True)
def nothing_stays_compiled() -> Iterator[None]:
    """vLLM watches what torch compiles until its model is collected, and fails on a model that is half gone:
    engines of later tests would pay for it."""
    yield
    from torch._dynamo import convert_frame

    convert_frame._bytecode_hooks.clear()


def answers(deployment: Deployment, **options: Any) -> list[Any]:
    with engine(deployment, **COMPILED, **options) as llm:
        assert int(llm.llm_engine.vllm_config.compilation_config.mode) > 0
        return generate(llm, deployment.tokens())


def assert_as_transformers(deployment: Deployment, outputs: list[Any]) -> None:
    from inferaligner.vllm import gate_of

    opened = set()
    for output in outputs:
        decision, answer = deployment.expected(output.prompt_token_ids, 8)
        assert gate_of(output)["score"] == score_of(decision, deployment)
        assert gate_of(output)["open"] == decision.open
        assert list(output.outputs[0].token_ids) == answer
        assert (answer != deployment.bare(output.prompt_token_ids, 8)) == decision.open
        opened.add(decision.open)
    assert opened == {True, False}


def test_a_warm_compile_cache_of_another_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock vLLM first, then an aligner, then another one that steers other layers: one cache for all."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    deployment = deploy(tmp_path, reads=DEEP_READS)
    for output in answers(deployment, plugin=False):
        assert list(output.outputs[0].token_ids) == deployment.bare(output.prompt_token_ids, 8)
    assert any((tmp_path / "cache").rglob("*")), "nothing was compiled, so nothing is tested"
    assert_as_transformers(deployment, answers(deployment))

    steering = deployment.aligner.artifact.steering
    other = Aligner(deployment.aligner.artifact.with_steering(layers=(0, 3), positions="all", strength=3.0))
    assert other.artifact.steering != steering
    replaced = Deployment(
        deployment.model,
        deployment.tokenizer,
        other,
        deployment.target,
        other.save_pretrained(tmp_path / "other"),
    )
    assert_as_transformers(replaced, answers(replaced))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_layers_that_return_one_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Steering is added in place to what the graph has computed, or to a view of it."""
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    deployment = deploy(tmp_path, family, reads=DEEP_READS, strength=4.0)
    for tokens in deployment.tokens():
        deployment.expected(tokens, 8), deployment.bare(tokens, 8)  # vLLM changes the classes of transformers
    assert_as_transformers(deployment, answers(deployment))
