"""Quantised weights and activations (compressed-tensors, int8): gated on what the engine computes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.vllm_deployment import DEEP_READS, deploy, engine, generate, recording

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

_INT8 = {"num_bits": 8, "type": "int", "symmetric": True}
_QUANTISATION = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
        }
    },
}


def quantise(folder: Path) -> None:
    """Rewrites a checkpoint with int8 weights, one scale a row."""
    file, config = folder / "model.safetensors", folder / "config.json"
    made: dict[str, torch.Tensor] = {}
    for name, weight in load_file(file).items():
        if not name.endswith("_proj.weight"):
            made[name] = weight
            continue
        scale = weight.abs().amax(1, keepdim=True) / 127
        made[name] = (weight / scale).round().to(torch.int8)
        made[f"{name}_scale"] = scale
    assert any(value.dtype == torch.int8 for value in made.values())
    save_file(made, file, metadata={"format": "pt"})
    config.write_text(json.dumps({**json.loads(config.read_text()), "quantization_config": _QUANTISATION}))


def test_decisions_are_those_of_the_quantised_model(tmp_path: Path) -> None:
    """The kernels for int8 want bfloat16, whose eight bits are the tolerance."""
    from inferaligner.vllm import gate_of

    deployment = deploy(tmp_path, reads=DEEP_READS)
    quantise(deployment.target)
    tokens, gate = deployment.tokens(), deployment.aligner.artifact.gate
    with recording(deployment, dtype="bfloat16") as recorder:
        recorded = recorder.record(tokens, layers=gate.layers, offsets=gate.offsets)
    expected = gate.decide(gate.scores(recorded.values, recorded.layers, recorded.offsets))
    with engine(deployment, plugin=False, dtype="bfloat16") as llm:
        stock = [list(output.outputs[0].token_ids) for output in generate(llm, tokens)]
    with engine(deployment, dtype="bfloat16") as llm:
        outputs = generate(llm, tokens)
    opened = set()
    for output, decision, bare in zip(outputs, expected, stock, strict=True):
        assert gate_of(output)["score"] == pytest.approx(decision.score, abs=1e-2 * (1 + abs(gate.bias)))
        assert gate_of(output)["open"] == decision.open
        assert (list(output.outputs[0].token_ids) != bare) == decision.open
        opened.add(decision.open)
    assert opened == {True, False}
