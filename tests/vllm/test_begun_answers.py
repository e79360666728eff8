"""Begun answers and raw text on vLLM: both gates read, and the two engines agree."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inferaligner.aligner import Aligner
from inferaligner.method.activations import record_activations
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GateRead, GuidanceGate
from tests.support.vllm_deployment import (
    DEEP_READS,
    PROMPTS,
    WIDTH,
    Deployment,
    deploy,
    engine,
    generate,
    score_of,
)

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

LENGTH = 6
BEGUN = ["Sure, here is", "{", "The answer is", "Well then, let us say that the sky"]
END_READS = (GateRead(0, 0), GateRead(1, 0), GateRead(1, 2))


def with_end_gate(deployment: Deployment) -> Deployment:
    """The same with a gate of begun answers that opens on half of them."""
    gate = GuidanceGate(
        "test",
        END_READS,
        torch.randn(len(END_READS), WIDTH, generator=torch.Generator().manual_seed(7)),
        0.0,
    )
    found = record_activations(deployment.model, begun(deployment), layers=gate.layers, offsets=gate.offsets)
    scores = gate.scores(found.values, found.layers, found.offsets).sort().values
    middle = len(scores) // 2
    bias = -float(scores[middle - 1] + scores[middle]) / 2
    aligner = Aligner(replace(deployment.aligner.artifact, end_gate=EndGate(gate, bias, bias)))
    return replace(deployment, aligner=aligner, folder=aligner.save_pretrained(deployment.folder), known={})


def begun(deployment: Deployment) -> list[list[int]]:
    """Every prompt with an answer begun behind it."""
    return [
        [*turn, *deployment.tokenizer(BEGUN[at % len(BEGUN)], add_special_tokens=False)["input_ids"]]
        for at, turn in enumerate(deployment.tokens())
    ]


def raw(deployment: Deployment) -> list[list[int]]:
    return [
        list(deployment.tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (*PROMPTS, *BEGUN)
        if len(text) > 12
    ]


def agree(deployment: Deployment, outputs: list[Any]) -> set[bool]:
    """Decisions, scores and tokens are those of transformers; returns the decisions."""
    from inferaligner.vllm import gate_of

    opened = set()
    for output in outputs:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decision, answer = deployment.expected(output.prompt_token_ids, LENGTH)
        report = gate_of(output)
        assert report["open"] == decision.open
        assert report["score"] == score_of(decision, deployment)
        assert list(output.outputs[0].token_ids) == answer
        opened.add(decision.open)
    return opened


@pytest.mark.parametrize(
    ("layers", "positions", "options"),
    [
        pytest.param((2, 3), "from_gate", {}, id="one pass"),
        pytest.param((2, 3), "from_gate", {"max_num_batched_tokens": 5, "max_num_seqs": 3}, id="chunks of 5"),
        pytest.param((0, 3), "from_gate", {"enable_prefix_caching": True}, id="replay, prefix cache"),
        pytest.param((2, 3), "all", {"max_num_batched_tokens": 16}, id="all positions, chunks of 16"),
    ],
)  # fmt: skip
def test_begun_answers_are_judged_as_in_transformers(
    tmp_path: Path, layers: Any, positions: Any, options: dict[str, Any]
) -> None:
    """Chats, begun answers and both at once; by default they are taken where there is a gate for them."""
    deployment = with_end_gate(deploy(tmp_path, reads=DEEP_READS, layers=layers, positions=positions))
    prompts = [each for pair in zip(deployment.tokens(), begun(deployment), strict=True) for each in pair]
    with engine(deployment, **options) as llm:
        outputs = generate(llm, prompts, LENGTH)
        assert agree(deployment, outputs) == {True, False}
        # Once more: what the prefix cache holds by now must change nothing.
        agree(deployment, generate(llm, prompts, LENGTH))


def test_raw_text_is_refused_and_can_be_allowed(tmp_path: Path) -> None:
    from vllm.exceptions import VLLMValidationError

    deployment = with_end_gate(deploy(tmp_path))
    with engine(deployment) as llm:
        for tokens in raw(deployment)[:2]:
            with pytest.raises(VLLMValidationError, match="chat template"):
                generate(llm, [tokens], 2)
    with engine(deployment, gate={"prompts": "any"}) as llm:
        assert agree(deployment, generate(llm, raw(deployment), LENGTH)) == {True, False}


def test_an_aligner_of_before_refuses_begun_answers(tmp_path: Path) -> None:
    """Unless the operator takes any prompt; then its own gate reads both places, as transformers does."""
    from vllm.exceptions import VLLMValidationError

    deployment = deploy(tmp_path, reads=DEEP_READS)
    refused = pytest.raises(VLLMValidationError, match="without a gate for begun answers")
    with engine(deployment) as llm, refused:
        generate(llm, begun(deployment)[:1], 2)
    with engine(deployment, gate={"prompts": "any"}) as llm:
        agree(deployment, generate(llm, begun(deployment), LENGTH))
