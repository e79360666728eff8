"""Models that see: requests with pictures are gated and steered as transformers gates and steers them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inferaligner.errors import InputError
from inferaligner.method.gate import GateRead
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.images import pictures_of
from tests.support.vllm_deployment import DEEP_READS, engine, score_of
from tests.support.vllm_vision import PROMPTS, VisionDeployment, ask, deploy_vision

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

LENGTH = 6


def assert_equal_to_transformers(
    deployment: VisionDeployment, outputs: list[Any], rounding: float = 1e-5
) -> None:
    """Prompt tokens, decisions, scores to float32 rounding, and every token; both kinds are among them."""
    from inferaligner.vllm import gate_of

    prompts = encode_chats(deployment.loaded.reader, PROMPTS)
    guarded, bare = (deployment.expected(LENGTH, steered=steered) for steered in (True, False))
    opened = set()
    for prompt, output, tokens, ours, plain in zip(PROMPTS, outputs, prompts, guarded, bare, strict=True):
        assert list(output.prompt_token_ids) == list(tokens)
        assert ours.decision is not None
        report = gate_of(output)
        assert report["open"] == ours.decision.open
        assert report["score"] == score_of(ours.decision, deployment, rounding)
        assert tuple(output.outputs[0].token_ids) == ours.tokens
        assert (ours.tokens != plain.tokens) == ours.decision.open
        opened.add((ours.decision.open, bool(pictures_of(prompt))))
    assert {(True, True), (False, True)} <= opened, "pictures must be among both kinds"


@pytest.mark.parametrize(
    ("reads", "layers", "positions", "options"),
    [
        pytest.param((GateRead(1),), (2, 3), "from_gate", {}, id="the paper's gate"),
        pytest.param(DEEP_READS, (0, 3), "all", {}, id="all positions: opened pictures are computed again"),
        pytest.param(
            DEEP_READS, (2, 3), "from_gate", {"max_num_batched_tokens": 40, "max_num_seqs": 3}, id="chunks"
        ),
    ],
)
def test_equal_to_transformers(
    tmp_path: Path, reads: Any, layers: Any, positions: str, options: dict[str, Any]
) -> None:
    deployment = deploy_vision(tmp_path, "idefics3", reads=reads, layers=layers, positions=positions)
    with engine(deployment, **options) as llm:
        outputs = ask(llm, LENGTH)
    assert_equal_to_transformers(deployment, outputs)


def test_the_prefix_cache_tells_pictures_apart(tmp_path: Path) -> None:
    deployment = deploy_vision(tmp_path, "idefics3", reads=DEEP_READS, layers=(0, 3), positions="all")
    with engine(deployment, enable_prefix_caching=True, block_size=32) as llm:
        assert_equal_to_transformers(deployment, ask(llm, LENGTH))
        again = ask(llm, LENGTH)
    assert_equal_to_transformers(deployment, again)
    assert sum(output.num_cached_tokens or 0 for output in again) > 0


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llava", "smolvlm", "internvl", "qwen2_5_vl"])
def test_families(tmp_path: Path, family: str) -> None:
    """vLLM reads their pictures with torchvision, which `make test-vllm` does without, and not to the last
    digit as Pillow does."""
    pytest.importorskip("torchvision", exc_type=(ImportError, RuntimeError))  # type: ignore[arg-type]
    deployment = deploy_vision(tmp_path, family, reads=DEEP_READS, layers=(2, 3), positions="from_gate")
    with engine(deployment) as llm:
        assert_equal_to_transformers(deployment, ask(llm, LENGTH), rounding=2e-3)


def test_pictures_are_not_recorded(tmp_path: Path) -> None:
    from inferaligner.vllm.recording import RecordingEngine

    deployment = deploy_vision(tmp_path, "idefics3", reads=DEEP_READS, layers=(2, 3), positions="from_gate")
    recorder = RecordingEngine.__new__(RecordingEngine)
    recorder.depth = 4
    with pytest.raises(InputError, match="activations of text alone"):
        recorder.record(encode_chats(deployment.loaded.reader, PROMPTS))
