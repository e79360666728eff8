"""Prefix caching by numbers of cached tokens, and by the tokens that come out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inferaligner.method.gate import GateRead
from inferaligner.vllm.prefix_cache import PrefixCacheLimits
from tests.support.vllm_deployment import DEEP_READS, PROMPTS, Deployment, deploy, engine, generate, score_of

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

BLOCK = 32  # the least that vLLM's attention on a CPU takes
CACHING = {"enable_prefix_caching": True, "block_size": BLOCK, "max_model_len": 512}
LONG = {"max_position_embeddings": 512}
REACH = 5  # of DEEP_READS


def by_decision(deployment: Deployment) -> tuple[list[int], list[int]]:
    """Prompts (closed, open), made long enough that most of them can be shared."""
    found: dict[bool, list[int]] = {}
    for prompt in PROMPTS:
        for filler in ("", "The quick brown fox jumps over the lazy dog. " * 4):
            (tokens,) = deployment.tokens([filler + prompt])
            if len(tokens) > 2 * BLOCK:
                found.setdefault(deployment.expected(tokens, 1)[0].open, tokens)
    return found[False], found[True]


def cached(output: Any) -> int:
    return int(output.num_cached_tokens)


def blocks(tokens: int) -> int:
    return tokens // BLOCK * BLOCK


def answers(output: Any) -> list[int]:
    return list(output.outputs[0].token_ids)


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return deploy(tmp_path_factory.mktemp("cache"), reads=DEEP_READS, **LONG)


@pytest.mark.parametrize(("limit", "found"), [((), 7), ((9,), 7), ((5,), 5)])
def test_a_limit_of_vllms_own_is_kept(limit: tuple[int, ...], found: int) -> None:
    """vLLM 0.33 may give the lookup a limit; the shorter of both counts. 0.32 gives none."""

    class Coordinator:
        def find_longest_cache_hit(self, block_hashes: Any, max_cache_hit_length: int) -> int:
            return max_cache_hit_length

        def cache_blocks(self, request: Any, num_computed_tokens: int) -> None: ...

    class Manager:
        coordinator = Coordinator()

        def get_computed_blocks(self, request: Any, max_cache_hit_length: int = 20) -> int:
            return self.coordinator.find_longest_cache_hit((), max_cache_hit_length)

    manager: Any = Manager()
    PrefixCacheLimits(manager, readable=lambda request: 7, writable=lambda request: None)
    assert manager.get_computed_blocks("request", *limit) == found


def test_the_hit_ends_before_the_first_token_that_the_gate_reads(deployment: Deployment) -> None:
    from inferaligner.vllm import gate_of

    closed, opened = by_decision(deployment)
    with engine(deployment, **CACHING) as llm:
        for tokens in (closed, opened):
            decision, answer = deployment.expected(tokens, 8)
            for hit in (0, blocks(len(tokens) - 1 - REACH)):
                (output,) = generate(llm, [tokens])
                assert cached(output) == hit
                assert gate_of(output)["score"] == score_of(decision, deployment)
                assert answers(output) == answer


def test_a_prompt_that_ends_with_a_block_is_still_decided(deployment: Deployment) -> None:
    """Up to the last token, everything is in the cache."""
    from inferaligner.vllm import gate_of

    closed, opened = by_decision(deployment)
    with engine(deployment, gate={"prompts": "any"}, **CACHING) as llm:
        for tokens in (closed, opened):
            whole = tokens[: blocks(len(tokens))]
            decision, answer = deployment.expected(whole, 8)
            generate(llm, [tokens])
            (output,) = generate(llm, [whole])
            assert cached(output) == blocks(len(whole) - 1 - REACH)
            assert gate_of(output)["score"] == score_of(decision, deployment)
            assert gate_of(output)["open"] == decision.open
            assert answers(output) == answer


@pytest.mark.parametrize("length", [1, 40])
def test_closed_requests_share_as_much_as_without_the_plugin(deployment: Deployment, length: int) -> None:
    """A second turn finds the first one's prompt and answer."""
    closed, _ = by_decision(deployment)
    (tail,) = deployment.tokens(["And then? " * 12])
    hits = []
    for plugin in (True, False):
        with engine(deployment, plugin=plugin, **CACHING) as llm:
            (first,) = generate(llm, [closed], length)
            (second,) = generate(llm, [[*closed, *answers(first), *tail]], 4)
            hits.append(cached(second))
    assert hits[0] == hits[1] == blocks(len(closed) + length - 1)


@pytest.mark.parametrize("layers", [(2, 3), (0, 3)], ids=["one pass", "replayed"])
@pytest.mark.parametrize("positions", ["from_gate", "all"])
def test_steered_blocks_are_never_shared(tmp_path: Path, layers: Any, positions: str) -> None:
    """A second turn after a steered first one is computed as if the first had never been."""
    from inferaligner.vllm import gate_of

    deployment = deploy(tmp_path, reads=DEEP_READS, layers=layers, positions=positions, **LONG)
    _, opened = by_decision(deployment)
    (tail,) = deployment.tokens(["And then? " * 12])
    with engine(deployment, **CACHING) as llm:
        (first,) = generate(llm, [opened], 40)
        assert answers(first) == deployment.expected(opened, 40)[1]
        second = [*opened, *answers(first), *tail]
        decision, answer = deployment.expected(second, 8)
        (output,) = generate(llm, [second])
    assert cached(output) <= blocks(len(opened) - 1)
    assert gate_of(output)["score"] == score_of(decision, deployment)
    assert answers(output) == answer


def test_the_same_open_prompt_many_times_at_once(deployment: Deployment) -> None:
    """Undecided requests of one step must not read each other's steered blocks."""
    closed, opened = by_decision(deployment)
    with engine(deployment, gate={"prompts": "any"}, **CACHING) as llm:
        longer = [*opened, *deployment.expected(opened, 30)[1]]  # holds the steered answer as its own prompt
        prompts = [opened, longer, opened, longer, closed, opened]
        outputs = generate(llm, prompts, 24)
        for tokens, output in zip(prompts, outputs, strict=True):
            assert answers(output) == deployment.expected(tokens, 24)[1]


def test_shadow_mode_shares_everything(deployment: Deployment) -> None:
    closed, opened = by_decision(deployment)
    (tail,) = deployment.tokens(["And then? " * 12])
    with engine(deployment, gate={"shadow": True}, **CACHING) as llm:
        for tokens in (closed, opened):
            (first,) = generate(llm, [tokens], 40)
            assert answers(first) == deployment.bare(tokens, 40)
            (second,) = generate(llm, [[*tokens, *answers(first), *tail]], 4)
            assert cached(second) == blocks(len(tokens) + 40 - 1)


def test_a_shallow_gate_costs_no_more_than_its_own_token(tmp_path: Path) -> None:
    deployment = deploy(tmp_path, reads=[GateRead(1)], **LONG)
    closed, _ = by_decision(deployment)
    with engine(deployment, gate={"prompts": "any"}, **CACHING) as llm:
        generate(llm, [closed])
        whole = closed[: blocks(len(closed))]
        (output,) = generate(llm, [[*whole, 9]])
    assert cached(output) == len(whole)
