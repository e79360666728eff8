"""A thousand requests in random order: each gets the decision it gets alone, and a closed one gets the answer
of stock vLLM."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.vllm_deployment import DEEP_READS, PROMPTS, deploy, engine, score_of

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

REQUESTS = 1000
TIGHT = {  # chunks, shared prefixes, and a cache too small for the batch
    "block_size": 32,
    "num_gpu_blocks_override": 14,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 48,
    "enable_prefix_caching": True,
}


@dataclass(frozen=True)
class Drawn:
    tokens: tuple[int, ...]
    length: int


def drawn(prompts: list[list[int]]) -> dict[str, Drawn]:
    draw = random.Random(0)
    return {
        str(number): Drawn(tuple(draw.choice(prompts)), draw.choice([1, 2, 5, 12]))
        for number in range(REQUESTS)
    }


def served(llm: Any, requests: dict[str, Drawn], arrivals: int) -> tuple[dict[str, Any], int]:
    """The outputs that reached their length, and the number of preemptions."""
    from vllm import SamplingParams

    draw, core, finished, preempted = random.Random(arrivals), llm.llm_engine, dict[str, Any](), 0
    scheduler = core.engine_core.engine_core.scheduler
    real = scheduler._preempt_request

    def counted(*args: Any, **options: Any) -> None:
        nonlocal preempted
        preempted += not options.get("drop_stale_output", False)
        real(*args, **options)

    scheduler._preempt_request = counted
    for name, request in requests.items():
        core.add_request(
            name,
            {"prompt_token_ids": list(request.tokens)},
            SamplingParams(max_tokens=request.length, temperature=0, ignore_eos=True),
        )
        for _ in range(draw.choice([0, 1, 2, 5])):
            finished.update({each.request_id: each for each in core.step() if each.finished})
        if draw.random() < 0.05:
            core.abort_request([str(draw.randrange(max(0, int(name) - 4), int(name) + 1))])
    while core.has_unfinished_requests():
        finished.update({each.request_id: each for each in core.step() if each.finished})
    whole = {name: each for name, each in finished.items() if each.outputs[0].finish_reason == "length"}
    return whole, preempted


@pytest.mark.slow
def test_a_thousand_requests(tmp_path: Path) -> None:
    from inferaligner.vllm import gate_of

    deployment = deploy(tmp_path, reads=DEEP_READS)
    prefixes = ["", "The quick brown fox jumps over the lazy dog. ", "Write a short story. " * 3]
    prompts = deployment.tokens([prefix + prompt for prefix in prefixes for prompt in PROMPTS])
    requests = drawn(prompts)
    with engine(deployment, **TIGHT) as llm:
        gated, preempted = served(llm, requests, arrivals=1)
    with engine(deployment, plugin=False, **TIGHT) as llm:
        stock, _ = served(llm, requests, arrivals=1)
        again, _ = served(llm, requests, arrivals=2)

    assert preempted > 0 and len(gated) > 0.9 * REQUESTS
    alone = {tuple(ids): deployment.expected(ids, 1)[0] for ids in prompts}
    seen = set()
    for name, output in gated.items():
        decision, report = alone[requests[name].tokens], gate_of(output)
        assert report["open"] == decision.open
        assert report["score"] == score_of(decision, deployment)
        seen.add(decision.open)
    assert seen == {True, False}

    def differ(one: dict[str, Any], other: dict[str, Any], is_open: bool) -> list[bool]:
        return [
            list(one[name].outputs[0].token_ids) != list(other[name].outputs[0].token_ids)
            for name in one.keys() & other.keys()
            if alone[requests[name].tokens].open == is_open
        ]

    # vLLM itself may round differently in another batch: closed requests may differ by that only.
    closed = differ(gated, stock, is_open=False)
    assert len(closed) > REQUESTS / 4
    assert sum(closed) <= sum(differ(again, stock, is_open=False))
    assert any(differ(gated, stock, is_open=True))
