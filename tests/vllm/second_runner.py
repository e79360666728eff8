"""Tests of vLLM's second model runner, with and without async scheduling.

Run by `test_runner_v2.py`, or with VLLM_USE_V2_MODEL_RUNNER=1 pytest tests/vllm/second_runner.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from inferaligner.steering.gate_choices import REFUSAL
from tests.support.vllm_deployment import DEEP_READS, PROMPTS, Deployment, deploy, engine, generate, score_of

LENGTH = 4
PLANS = [
    pytest.param(((2, 3), "from_gate"), id="one pass"),
    pytest.param(((0, 3), "all"), id="replayed"),
]
ASYNC = {"gate": {"async_scheduling": True}}
SCHEDULING = [pytest.param({}, id="in step"), pytest.param(ASYNC, id="a step ahead")]


@pytest.fixture(scope="module", params=PLANS)
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    layers, positions = request.param
    return deploy(tmp_path_factory.mktemp("second"), reads=DEEP_READS, layers=layers, positions=positions)


def assert_alone(deployment: Deployment, outputs: list[Any], length: int = LENGTH) -> None:
    """Every output equals that of transformers for the request alone; both decisions occur."""
    from inferaligner.vllm import gate_of

    opened = set()
    for output in outputs:
        decision, answer = deployment.expected(output.prompt_token_ids, length)
        report = gate_of(output)
        assert report["score"] == score_of(decision, deployment)
        assert report["open"] == decision.open
        for each in output.outputs:
            assert list(each.token_ids) == answer
        opened.add(decision.open)
    assert opened == {True, False}


def assert_second_runner(llm: Any, *, ahead: bool) -> None:
    from vllm.v1.worker.gpu.model_runner import GPUModelRunner

    assert isinstance(llm.llm_engine.model_executor.driver_worker.worker.model_runner, GPUModelRunner)
    assert llm.llm_engine.vllm_config.scheduler_config.async_scheduling == ahead
    assert (llm.llm_engine.engine_core.engine_core.batch_queue is not None) == ahead


@pytest.mark.parametrize("scheduling", SCHEDULING)
def test_chunks_and_shared_prefixes(deployment: Deployment, scheduling: dict[str, Any]) -> None:
    """New requests join the steps of old ones; prompts are chunked, and the second time cached."""
    with engine(
        deployment, max_num_batched_tokens=48, block_size=32, enable_prefix_caching=True, **scheduling
    ) as llm:
        assert_second_runner(llm, ahead=bool(scheduling))
        assert_alone(deployment, generate(llm, deployment.tokens(), LENGTH))
        again = generate(llm, deployment.tokens(), LENGTH)
    assert_alone(deployment, again)
    assert any(output.num_cached_tokens for output in again)


@pytest.mark.parametrize("scheduling", SCHEDULING)
def test_preemption(deployment: Deployment, scheduling: dict[str, Any]) -> None:
    """A cache too small for the batch: the runner forgets requests that are preempted."""
    with engine(
        deployment,
        block_size=32,
        num_gpu_blocks_override=9,
        max_num_seqs=4,
        max_model_len=128,
        enable_prefix_caching=True,
        **scheduling,
    ) as llm:
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        preempted = []
        real = scheduler._preempt_request
        scheduler._preempt_request = lambda *args, **options: (
            preempted.append(options.get("drop_stale_output", False)),
            real(*args, **options),
        )
        outputs = generate(llm, deployment.tokens()[:5], 36)
    assert preempted.count(False) > 0  # for want of memory, not to be replayed
    assert_alone(deployment, outputs, 36)


@pytest.mark.parametrize("scheduling", SCHEDULING)
def test_aborts_and_refusals(deployment: Deployment, scheduling: dict[str, Any]) -> None:
    from inferaligner.vllm import gate_of
    from inferaligner.vllm.scheduler import STOP_REASON
    from vllm import SamplingParams

    gate = {"on_open": "refuse", **scheduling.get("gate", {})}
    tokens = deployment.tokens()
    with engine(deployment, gate=gate, max_num_seqs=2, max_num_batched_tokens=48) as llm:
        core = llm.llm_engine
        parameters = SamplingParams(max_tokens=LENGTH, temperature=0, ignore_eos=True)
        finished = {}
        for number, ids in enumerate([*tokens, *tokens]):
            core.add_request(str(number), {"prompt_token_ids": ids}, parameters)
            for _ in range(number % 3):
                finished.update({each.request_id: each for each in core.step() if each.finished})
            if number % 5 == 4:
                core.abort_request([str(number)])
        while core.has_unfinished_requests():
            finished.update({each.request_id: each for each in core.step() if each.finished})
        assert not core.engine_core.engine_core.scheduler._gated
    actions = set()
    for output in finished.values():
        if output.outputs[0].finish_reason == "abort":
            continue
        decision, _ = deployment.expected(output.prompt_token_ids, 1)
        report = gate_of(output)
        assert report["open"] == decision.open
        actions.add(report["action"])
        if decision.open:
            assert output.outputs[0].text == REFUSAL and output.outputs[0].stop_reason == STOP_REASON
        else:
            assert list(output.outputs[0].token_ids) == deployment.bare(output.prompt_token_ids, LENGTH)
    assert actions == {"refused", "none"}


def test_the_warm_up_of_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before vLLM serves on a GPU (from 0.33 on, on a CPU too), it runs requests of its own through the
    worker, which no scheduler ordered."""
    from vllm.v1.worker.cpu_worker import CPUWorker
    from vllm.v1.worker.gpu.warmup import warmup_kernels

    from vllm import SamplingParams

    deployment = deploy(tmp_path, reads=DEEP_READS, layers=(2, 3), positions="from_gate")
    before, warmed = CPUWorker.compile_or_warm_up_model, []

    def as_on_gpus(worker: Any) -> Any:
        times = before(worker)
        # Without a grammar, and greedily: Triton's interpreter does not run the other kernels.
        warmup_kernels(worker.model_runner, worker.execute_model, lambda _: worker.sample_tokens(None))
        warmed.append(int(worker.gate_rows.counts.sum()))
        return times

    monkeypatch.setattr(CPUWorker, "compile_or_warm_up_model", as_on_gpus)
    monkeypatch.setattr(SamplingParams, "for_sampler_warmup", lambda: SamplingParams(temperature=0))
    with engine(deployment, max_num_seqs=2) as llm:
        assert warmed == [0]
        assert_alone(deployment, generate(llm, deployment.tokens()[:5], 2), 2)


def test_a_second_turn_after_a_steered_first_one(tmp_path: Path) -> None:
    """Under async scheduling blocks are cached before the step's output is back."""
    deployment = deploy(tmp_path, reads=DEEP_READS, max_position_embeddings=512)
    longer = deployment.tokens([f"{prompt} " * 3 for prompt in PROMPTS])
    opened = next(ids for ids in longer if len(ids) > 64 and deployment.expected(ids, 1)[0].open)
    (tail,) = deployment.tokens(["And then? " * 6])
    with engine(deployment, block_size=32, max_model_len=512, enable_prefix_caching=True, **ASYNC) as llm:
        (first,) = generate(llm, [opened], 40)
        first_answer = list(first.outputs[0].token_ids)
        assert first_answer == deployment.expected(opened, 40)[1]
        second = [*opened, *first_answer, *tail]
        (output,) = generate(llm, [second], LENGTH)
    assert output.num_cached_tokens <= len(opened) - 1
    assert list(output.outputs[0].token_ids) == deployment.expected(second, LENGTH)[1]


@pytest.mark.parametrize("scheduling", SCHEDULING)
@pytest.mark.parametrize("positions", ["from_gate", "all"])
def test_answers_that_a_monitor_opens(tmp_path: Path, scheduling: dict[str, Any], positions: str) -> None:
    """Requests are preempted and resume; a step ahead, the host learns late which token opened an answer."""
    from inferaligner.vllm import gate_of

    length = 16
    deployment = deploy(tmp_path, reads=DEEP_READS, positions=positions, monitor=2)
    with engine(
        deployment,
        block_size=32,
        num_gpu_blocks_override=9,
        max_model_len=128,
        enable_prefix_caching=True,
        **scheduling,
    ) as llm:
        assert_second_runner(llm, ahead=bool(scheduling))
        outputs = generate(llm, deployment.tokens(), length)
    kinds = set()
    for output in outputs:
        decision, answer = deployment.expected(output.prompt_token_ids, length)
        assert gate_of(output).get("opened_at") == decision.answer_token
        assert gate_of(output)["open"] == (decision.opened_at is not None)
        assert list(output.outputs[0].token_ids) == answer
        kinds.add("answer" if decision.answer_token else decision.opened_at)
    assert kinds == {"prompt", "answer", None}


def test_lora(tmp_path: Path) -> None:
    from vllm.lora.request import LoRARequest

    deployment = deploy(tmp_path, reads=DEEP_READS, adapter=True)
    place = str(tmp_path / "medicine")
    with engine(
        deployment,
        gate={"adapter": place, **ASYNC["gate"]},
        enable_lora=True,
        max_lora_rank=8,
        max_num_batched_tokens=48,
    ) as llm:
        outputs = generate(llm, deployment.tokens(), LENGTH, lora_request=LoRARequest("medicine", 1, place))
    assert_alone(deployment, outputs)
