"""Requests that begin, end, are preempted and resume: every decision is that of the request alone."""

from __future__ import annotations

import hashlib
import json
import random
from array import array
from pathlib import Path
from typing import Any

import pytest

from inferaligner.steering.gate_choices import REFUSAL
from tests.support.vllm_deployment import DEEP_READS, PROMPTS, Deployment, deploy, engine, generate, score_of

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

PLANS = [
    pytest.param(((2, 3), "from_gate"), id="one pass"),
    pytest.param(((0, 3), "from_gate"), id="steering below the gate", marks=pytest.mark.slow),
    pytest.param(((2, 3), "all"), id="all positions"),
]


@pytest.fixture(scope="module", params=PLANS)
def deployment(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    layers, positions = request.param
    return deploy(tmp_path_factory.mktemp("lifecycle"), reads=DEEP_READS, layers=layers, positions=positions)


def assert_alone(deployment: Deployment, output: Any, length: int) -> bool:
    """The output is what the request gets alone in transformers; returns whether it was open."""
    from inferaligner.vllm import gate_of

    decision, answer = deployment.expected(output.prompt_token_ids, length)
    report = gate_of(output)
    assert report["score"] == score_of(decision, deployment)
    assert report["open"] == decision.open
    for each in output.outputs:
        assert list(each.token_ids) == answer
    return decision.open


def test_preemption_and_recompute(deployment: Deployment) -> None:
    """A cache too small for the batch: requests are preempted while they decode, and resume."""
    with engine(
        deployment,
        block_size=32,
        num_gpu_blocks_override=11,
        max_num_seqs=6,
        max_model_len=160,
        enable_prefix_caching=True,
        disable_log_stats=False,
    ) as llm:
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        preempted = []
        real = scheduler._preempt_request
        scheduler._preempt_request = lambda *args, **options: (
            preempted.append(options.get("drop_stale_output", False)),
            real(*args, **options),
        )
        outputs = generate(llm, deployment.tokens(), 40)
    assert preempted.count(False) > 0  # for want of memory, not to be replayed
    assert {assert_alone(deployment, output, 40) for output in outputs} == {True, False}


def test_several_answers_to_one_prompt(deployment: Deployment) -> None:
    with engine(deployment, enable_prefix_caching=True, max_num_seqs=6) as llm:
        outputs = generate(llm, deployment.tokens(), 6, n=3, temperature=1.0, top_k=1)
    assert all(len(output.outputs) == 3 for output in outputs)
    assert {assert_alone(deployment, output, 6) for output in outputs} == {True, False}


def test_aborted_requests_leave_nothing_behind(deployment: Deployment) -> None:
    """Requests are aborted at every age, and their slots are used by others at once."""
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=6, temperature=0, ignore_eos=True)
    tokens = deployment.tokens()
    with engine(deployment, max_num_seqs=2, max_num_batched_tokens=16, enable_prefix_caching=True) as llm:
        core = llm.llm_engine
        finished, number = {}, 0
        for age in range(1, 9):
            for offset in range(3):
                core.add_request(
                    f"r{number}", {"prompt_token_ids": tokens[(age + offset) % len(tokens)]}, parameters
                )
                number += 1
            for _ in range(age):
                finished.update({each.request_id: each for each in core.step() if each.finished})
            gone = f"r{number - 3}"
            if gone not in finished:
                core.abort_request([gone])
        while core.has_unfinished_requests():
            finished.update({each.request_id: each for each in core.step() if each.finished})
        scheduler = core.engine_core.engine_core.scheduler
        slots = core.model_executor.driver_worker.worker.gate_slots
        assert not scheduler._gated
        served = [each for each in finished.values() if each.outputs[0].finish_reason != "abort"]
        assert 8 < len(served) < number
        generate(llm, tokens[:1])
        assert len(slots._free) + len(slots._assigned) == 2
    assert {assert_alone(deployment, output, 6) for output in served} == {True, False}


def test_everything_at_once_in_random_order(deployment: Deployment) -> None:
    """Shared prefixes, chunks, a small cache, different lengths, aborts: 120 requests."""
    from vllm import SamplingParams

    draw = random.Random(0)
    prefixes = ["", "The quick brown fox jumps over the lazy dog. ", "Write a short story. " * 3]
    tokens = deployment.tokens([prefix + prompt for prefix in prefixes for prompt in PROMPTS])
    lengths, prompts, finished = {}, {}, {}
    with engine(
        deployment,
        block_size=32,
        num_gpu_blocks_override=14,
        max_num_seqs=6,
        max_num_batched_tokens=48,
        enable_prefix_caching=True,
    ) as llm:
        core = llm.llm_engine
        for number in range(120):
            name = str(number)
            prompts[name], lengths[name] = draw.choice(tokens), draw.choice([1, 2, 5, 16])
            core.add_request(
                name,
                {"prompt_token_ids": prompts[name]},
                SamplingParams(max_tokens=lengths[name], temperature=0, ignore_eos=True),
            )
            for _ in range(draw.choice([0, 0, 1, 3])):
                finished.update({each.request_id: each for each in core.step() if each.finished})
            if draw.random() < 0.1:
                core.abort_request([str(draw.randrange(number + 1))])
        while core.has_unfinished_requests():
            finished.update({each.request_id: each for each in core.step() if each.finished})
    served = {name: each for name, each in finished.items() if each.outputs[0].finish_reason == "length"}
    assert len(served) > 90
    alone = {}
    for name, output in served.items():
        key = (tuple(prompts[name]), lengths[name])
        if key not in alone:
            alone[key] = assert_alone(deployment, output, lengths[name]), output
        assert list(output.outputs[0].token_ids) == list(alone[key][1].outputs[0].token_ids)
        first, again = alone[key][1].kv_transfer_params, output.kv_transfer_params
        assert first["inferaligner"]["open"] == again["inferaligner"]["open"]
    assert {is_open for is_open, _ in alone.values()} == {True, False}


def test_log_probabilities(deployment: Deployment) -> None:
    """One for every token that is returned, none for dropped tokens; and the prompt's."""
    with engine(deployment, max_num_batched_tokens=16) as llm:
        outputs = generate(llm, deployment.tokens(), 5, logprobs=2, prompt_logprobs=1)
    for output in outputs:
        assert_alone(deployment, output, 5)
        chosen = output.outputs[0]
        assert [max(at, key=lambda token: at[token].logprob) for at in chosen.logprobs] == list(
            chosen.token_ids
        )
        assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_a_stop_string_ends_a_request_with_its_decision(deployment: Deployment) -> None:
    """The front end itself ends the request, without another output of the engine."""
    from inferaligner.vllm import gate_of

    with engine(deployment) as llm:
        for tokens in deployment.tokens()[:4]:
            text = generate(llm, [tokens], 8)[0].outputs[0].text
            (output,) = generate(llm, [tokens], 8, stop=[text[2:4]])
            assert output.outputs[0].finish_reason == "stop"
            assert gate_of(output)["open"] == deployment.expected(tokens, 1)[0].open


@pytest.mark.parametrize("choices", [{}, {"refusal": "Not that."}])
def test_on_open_refuse(deployment: Deployment, choices: dict[str, Any]) -> None:
    """Open requests get the whole text, as on the embedded server, however few tokens they may have."""
    from inferaligner.vllm import gate_of
    from inferaligner.vllm.scheduler import STOP_REASON

    with engine(deployment, gate={"on_open": "refuse", **choices}, enable_prefix_caching=True) as llm:
        outputs = generate(llm, deployment.tokens() * 2, prompt_logprobs=1, logprobs=2)
    actions = set()
    for output in outputs:
        decision, _ = deployment.expected(output.prompt_token_ids, 8)
        report = gate_of(output)
        assert report["open"] == decision.open
        actions.add(report["action"])
        if decision.open:
            answer = output.outputs[0]
            assert answer.text == choices.get("refusal", REFUSAL) and answer.stop_reason == STOP_REASON
            assert answer.cumulative_logprob == 0
            for token, logprobs in zip(answer.token_ids, answer.logprobs, strict=True):
                assert logprobs[token].logprob == 0
        else:
            assert list(output.outputs[0].token_ids) == deployment.bare(output.prompt_token_ids, 8)
    assert actions == {"refused", "none"}


def test_shadow_mode_reports_and_changes_nothing(deployment: Deployment) -> None:
    from inferaligner.vllm import gate_of

    with engine(deployment, gate={"shadow": True}) as llm:
        outputs = generate(llm, deployment.tokens())
    for output in outputs:
        decision, _ = deployment.expected(output.prompt_token_ids, 8)
        assert gate_of(output)["score"] == score_of(decision, deployment)
        assert gate_of(output)["action"] == ("shadow" if decision.open else "none")
        assert list(output.outputs[0].token_ids) == deployment.bare(output.prompt_token_ids, 8)


def test_the_audit_log_has_a_line_per_decision(deployment: Deployment, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "audit.jsonl"
    with engine(deployment, gate={"audit_log": str(log)}) as llm:
        outputs = generate(llm, deployment.tokens())
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == len(outputs)
    logged = {line["prompt_sha256"]: line for line in lines}
    for output in outputs:
        digest = hashlib.sha256(array("q", output.prompt_token_ids).tobytes()).hexdigest()
        decision, _ = deployment.expected(output.prompt_token_ids, 8)
        assert logged[digest]["open"] == decision.open
        assert logged[digest]["action"] == ("steered" if decision.open else "none")
        assert logged[digest]["bias"] == deployment.aligner.artifact.gate.bias
        assert logged[digest]["prompt_tokens"] == len(output.prompt_token_ids)
    assert not any(prompt in log.read_text(encoding="utf-8") for prompt in PROMPTS)
    with engine(deployment, gate={"audit_log": str(log), "audit_text": True}) as llm:
        generate(llm, deployment.tokens(PROMPTS[:1]))
    assert PROMPTS[0] in json.loads(log.read_text(encoding="utf-8").splitlines()[-1])["prompt"]


def test_counts_of_the_front_end(deployment: Deployment) -> None:
    from inferaligner.vllm.decision_reports import REPORTS

    before = dict(REPORTS.counts)
    with engine(deployment) as llm:
        generate(llm, deployment.tokens())
    grown = {name: count - before.get(name, 0) for name, count in REPORTS.counts.items()}
    assert grown["requests"] == len(PROMPTS)
    assert grown["opened"] == grown["steered"] == len(PROMPTS) // 2


def test_speculation_from_the_text(deployment: Deployment) -> None:
    """Drafted tokens are checked by the steered model, so the answer is the same."""
    speculation = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2}
    with engine(deployment, speculative_config=speculation, enable_prefix_caching=True) as llm:
        outputs = generate(llm, deployment.tokens() * 2, 16)
    assert {assert_alone(deployment, output, 16) for output in outputs} == {True, False}


def test_structured_output(deployment: Deployment) -> None:
    from vllm.sampling_params import StructuredOutputsParams

    from inferaligner.vllm import gate_of

    with engine(deployment) as llm:
        outputs = generate(
            llm,
            deployment.tokens(),
            8,
            ignore_eos=False,
            structured_outputs=StructuredOutputsParams(choice=["yes", "no"]),
        )
    for output in outputs:
        assert output.outputs[0].text in ("yes", "no")
        assert gate_of(output)["open"] == deployment.expected(output.prompt_token_ids, 1)[0].open
