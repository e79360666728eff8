"""LoRA adapters on one engine: the one that the aligner was fitted on is gated, others are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.vllm_deployment import DEEP_READS, PROMPTS, Deployment, deploy, engine, generate, score_of

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")
pytest.importorskip("peft", reason="the extra `models` has it")

LORA = {"enable_lora": True, "max_lora_rank": 8, "max_loras": 2}
CACHING = {"enable_prefix_caching": True, "block_size": 32, "max_num_batched_tokens": 48}


def adapter(folder: Path, number: int = 1, name: str = "medicine") -> Any:
    from vllm.lora.request import LoRARequest

    return LoRARequest(name, number, str(folder / "medicine"))


def assert_as_transformers(deployment: Deployment, outputs: list[Any], length: int = 8) -> None:
    from inferaligner.vllm import gate_of

    opened = set()
    for output in outputs:
        decision, answer = deployment.expected(output.prompt_token_ids, length)
        assert gate_of(output)["score"] == score_of(decision, deployment)
        assert gate_of(output)["open"] == decision.open
        assert list(output.outputs[0].token_ids) == answer
        assert (answer != deployment.bare(output.prompt_token_ids, length)) == decision.open
        opened.add(decision.open)
    assert opened == {True, False}


@pytest.mark.parametrize("layers", [(2, 3), (0, 3)], ids=["one pass", "replayed"])
def test_the_own_adapter_is_gated(tmp_path: Path, layers: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    deployment = deploy(tmp_path, reads=DEEP_READS, layers=layers, strength=4.0, adapter=True)
    gate = {"adapter": str(tmp_path / "medicine")}
    with engine(deployment, gate=gate, **LORA, **CACHING) as llm:
        for _ in range(2):
            outputs = generate(llm, deployment.tokens(), lora_request=adapter(tmp_path))
            assert_as_transformers(deployment, outputs)
        # The base model, another adapter, and one that would take its place.
        other = deploy(tmp_path / "other", adapter=True)
        assert other.target != deployment.target
        for request in (None, adapter(tmp_path / "other", 2), adapter(tmp_path / "other", 3, "medicine")):
            with pytest.raises(VLLMValidationError, match="was fitted on the adapter in 'medicine'"):
                generate(llm, deployment.tokens()[:1], lora_request=request)
        with pytest.raises(Exception, match="was fitted on the adapter"):
            llm.collective_rpc("add_lora", args=(adapter(tmp_path / "other", 4),))
        replaced = adapter(tmp_path)
        replaced.load_inplace = True
        with pytest.raises(VLLMValidationError, match="cannot be replaced"):
            generate(llm, deployment.tokens()[:1], lora_request=replaced)
        assert_as_transformers(deployment, generate(llm, deployment.tokens(), lora_request=adapter(tmp_path)))


def test_an_aligner_of_the_base_model(tmp_path: Path) -> None:
    """Adapters are refused, unless the operator lets them be gated too; no blocks are shared between them."""
    from vllm.exceptions import VLLMValidationError

    from inferaligner.vllm import gate_of

    with_adapter = deploy(tmp_path, reads=DEEP_READS, adapter=True, strength=4.0)
    with with_adapter.model.disable_adapter():
        base = deploy(tmp_path / "base", reads=DEEP_READS, strength=4.0)
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            with_adapter.model.get_base_model().lm_head.parameters(),
            base.model.lm_head.parameters(),
            strict=True,
        )
    )
    with engine(base, **LORA, **CACHING) as llm:
        with pytest.raises(VLLMValidationError, match="fitted on the base model alone"):
            generate(llm, base.tokens()[:1], lora_request=adapter(tmp_path))
        assert_as_transformers(base, generate(llm, base.tokens()))
    with engine(base, gate={"adapters": "any"}, **LORA, **CACHING) as llm:
        requests = [None if number % 2 else adapter(tmp_path) for number in range(2 * len(PROMPTS))]
        tokens = [ids for ids in base.tokens() for _ in range(2)]
        for _ in range(2):  # the second time out of the prefix cache
            outputs = generate(llm, tokens, lora_request=requests)
            assert_as_transformers(base, outputs[1::2])
            gate = base.aligner.artifact.gate
            for output in outputs[::2]:
                with base.aligner.apply(with_adapter.model, base.tokenizer) as guard:
                    ids = torch.tensor([list(output.prompt_token_ids)])
                    answer = with_adapter.model.generate(
                        input_ids=ids, max_new_tokens=8, min_new_tokens=8, do_sample=False, pad_token_id=0
                    )[0, ids.shape[1] :].tolist()
                    (decision,) = guard.decisions
                report = gate_of(output)
                assert report["score"] == pytest.approx(decision.score, abs=1e-4 * (1 + abs(gate.bias)))
                assert report["open"] == decision.open
                assert list(output.outputs[0].token_ids) == answer
