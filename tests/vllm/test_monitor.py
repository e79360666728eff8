"""The monitor of answers on vLLM: it opens at the token at which it does with transformers, and no later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from inferaligner.errors import InferAlignerError
from tests.support.vllm_deployment import DEEP_READS, Deployment, deploy, engine, generate, score_of

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

LENGTH = 24
BLOCK = 32
CACHING = {"enable_prefix_caching": True, "block_size": BLOCK}

PLANS = [
    pytest.param(((2, 3), "from_gate", 1), id="below the steered layers"),
    pytest.param(((2, 3), "all", 2), id="all positions, at the first steered layer"),
    pytest.param(((1, 3), "from_gate", 1), id="below the gate"),
]


@pytest.fixture(scope="module", params=PLANS)
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    layers, positions, monitor = request.param
    return deploy(
        tmp_path_factory.mktemp("monitor"),
        reads=DEEP_READS,
        layers=layers,
        positions=positions,
        monitor=monitor,
        max_position_embeddings=512,
    )


def assert_as_transformers(deployment: Deployment, outputs: list[Any], length: int = LENGTH) -> None:
    """Decisions, tokens at which answers open, and every token; all three kinds are among them."""
    from inferaligner.vllm import gate_of

    kinds = set()
    for output in outputs:
        decision, answer = deployment.expected(output.prompt_token_ids, length)
        found = gate_of(output)
        assert found["score"] == score_of(decision, deployment)
        assert found.get("opened_at") == decision.answer_token
        assert found["open"] == (decision.opened_at is not None)
        assert found["action"] == ("steered" if found["open"] else "none")
        for each in output.outputs:
            assert list(each.token_ids) == answer
        assert (answer != deployment.bare(output.prompt_token_ids, length)) == found["open"]
        kinds.add("answer" if decision.answer_token else decision.opened_at)
    assert kinds == {"prompt", "answer", None}


def of_kind(deployment: Deployment, kind: str | None) -> list[int]:
    """A prompt whose gate opens ("prompt"), whose answer is opened ("answer"), or neither."""
    for tokens in deployment.tokens():
        decision, _ = deployment.expected(tokens, LENGTH)
        if ("answer" if decision.answer_token else decision.opened_at) == kind:
            return tokens
    raise AssertionError(kind)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"max_num_batched_tokens": 24, **CACHING}, id="chunks, shared prefixes"),
        pytest.param(
            {"num_gpu_blocks_override": 9, "max_num_seqs": 6, "max_model_len": 128, **CACHING},
            id="thrown out and back",
        ),
    ],
)
def test_answers_open_where_transformers_opens_them(deployment: Deployment, options: dict[str, Any]) -> None:
    with engine(deployment, **options) as llm:
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        thrown_out: list[bool] = []
        real = scheduler._preempt_request
        scheduler._preempt_request = lambda *args, **more: (
            thrown_out.append(more.get("drop_stale_output", False)),
            real(*args, **more),
        )
        for _ in range(2):
            assert_as_transformers(deployment, generate(llm, deployment.tokens(), LENGTH))
        assert (thrown_out.count(False) > 0) == ("num_gpu_blocks_override" in options)


def test_several_answers_to_one_prompt(deployment: Deployment) -> None:
    with engine(deployment, max_num_seqs=6) as llm:
        outputs = generate(llm, deployment.tokens(), LENGTH, n=2, temperature=1.0, top_k=1)
    assert_as_transformers(deployment, outputs)


def test_what_was_steered_is_not_shared(deployment: Deployment) -> None:
    """A second turn reads the first one up to the token that opened it; a closed one reads all of it."""
    (tail,) = deployment.tokens(["And then? " * 12])
    hits = {}
    for kind in (None, "answer"):
        tokens = of_kind(deployment, kind)
        for plugin in (True, False):
            with engine(deployment, plugin=plugin, max_model_len=512, **CACHING) as llm:
                length = LENGTH if kind == "answer" else 2 * BLOCK - len(tokens) % BLOCK + 1
                (first,) = generate(llm, [tokens], length)
                said = list(first.outputs[0].token_ids)
                second = [*tokens, *said, *tail]
                (output,) = generate(llm, [second], 4)
                hits[kind, plugin] = int(output.num_cached_tokens)
                if plugin:
                    decision, answer = deployment.expected(second, 4)
                    assert list(output.outputs[0].token_ids) == answer
        if kind == "answer":
            decision, _ = deployment.expected(tokens, LENGTH)
            assert decision.answer_token is not None
            first_steered = len(tokens) + decision.answer_token - 1
            assert hits[kind, True] == first_steered // BLOCK * BLOCK
    if deployment.expected(of_kind(deployment, None), 3 * BLOCK)[0].opened_at is None:
        assert hits[None, True] == hits[None, False] > 0


def test_shadow_mode_reports_and_changes_nothing(deployment: Deployment) -> None:
    from inferaligner.vllm import gate_of

    with engine(deployment, gate={"shadow": True}) as llm:
        outputs = generate(llm, deployment.tokens(), LENGTH)
    opened = 0
    for output in outputs:
        decision, _ = deployment.expected(output.prompt_token_ids, LENGTH)
        found = gate_of(output)
        assert found.get("opened_at") == decision.answer_token
        assert found["action"] == ("none" if decision.opened_at is None else "shadow")
        assert list(output.outputs[0].token_ids) == deployment.bare(output.prompt_token_ids, LENGTH)
        opened += decision.answer_token is not None
    assert opened > 0


def test_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "cache"))
    deployment = deploy(tmp_path, reads=DEEP_READS, monitor=2)
    with engine(deployment, enforce_eager=False, max_num_batched_tokens=48, **CACHING) as llm:
        outputs = generate(llm, deployment.tokens(), LENGTH)
    assert_as_transformers(deployment, outputs)


def test_reports_counts_and_log(tmp_path: Path) -> None:
    """The opening of an answer is a line of its own in the log, and a count of its own."""
    import json

    from inferaligner.vllm.frontend_patches import REPORTS

    deployment, log = deploy(tmp_path, reads=DEEP_READS, monitor=2), tmp_path / "audit.jsonl"
    before = dict(REPORTS.counts)
    with engine(deployment, gate={"audit_log": str(log)}) as llm:
        generate(llm, deployment.tokens(), LENGTH)
    decisions = [deployment.expected(tokens, LENGTH)[0] for tokens in deployment.tokens()]
    opened = [each.answer_token for each in decisions if each.answer_token is not None]
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == len(decisions) + len(opened)
    later = [line for line in lines if "opened_at" in line]
    assert sorted(line["opened_at"] for line in later) == sorted(opened)
    assert all(line["open"] and line["action"] == "steered" and line["score"] <= 0 for line in later)
    grown = {name: count - before.get(name, 0) for name, count in REPORTS.counts.items()}
    assert grown["requests"] == len(decisions)
    assert grown["opened"] == sum(each.opened_at == "prompt" for each in decisions)
    assert grown["opened by the monitor"] == len(opened)


def test_nan_in_an_answer_opens_it(tmp_path: Path) -> None:
    from inferaligner.vllm import gate_of

    deployment = deploy(tmp_path, reads=DEEP_READS, monitor=2)
    with engine(deployment) as llm:
        worker = llm.llm_engine.model_executor.driver_worker.worker
        layer = next(m for m in worker.get_model().modules() if hasattr(m, "inferaligner_monitor"))
        layer.inferaligner_monitor.fill_(torch.nan)
        found = [gate_of(output) for output in generate(llm, deployment.tokens(), 4)]
    assert {each.get("opened_at") for each in found} == {None, 1}
    assert all(each["open"] for each in found)


def test_a_worker_that_does_not_read_stops_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inferaligner.vllm.protocol import StepDecisions
    from inferaligner.vllm.slots import PendingDecisions

    deployment, real = deploy(tmp_path, reads=DEEP_READS, monitor=2), PendingDecisions.arrive
    with engine(deployment) as llm:
        monkeypatch.setattr(PendingDecisions, "arrive", lambda self: StepDecisions(real(self).decisions))
        with pytest.raises(InferAlignerError, match="serving without the monitor"):
            generate(llm, deployment.tokens()[:4])


def test_the_self_test_finds_a_monitor_that_does_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inferaligner.vllm import layers

    deployment, real = deploy(tmp_path, reads=DEEP_READS, monitor=2), layers._hook
    monkeypatch.setattr(layers, "_hook", lambda *args, **more: real(*args, **{**more, "monitor": None}))
    with pytest.raises(InferAlignerError, match="the monitor read a token"), engine(deployment):
        pass


def test_what_it_does_not_go_with(tmp_path: Path) -> None:
    from inferaligner.vllm import engine_args

    deployment = deploy(tmp_path, reads=DEEP_READS, monitor=2)
    with pytest.raises(InferAlignerError, match="monitor=False"):
        engine_args(deployment.folder, on_open="refuse")
    speculation = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
    with pytest.raises(Exception, match="drafted tokens"), engine(deployment, speculative_config=speculation):
        pass
    with engine(deployment, gate={"monitor": False}, speculative_config=speculation) as llm:
        outputs = generate(llm, deployment.tokens(), 4)
    from inferaligner.vllm import gate_of

    assert all("opened_at" not in gate_of(output) for output in outputs)
