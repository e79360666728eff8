"""Fail closed: unsupported, incomplete or mismatched deployments do not start."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from inferaligner.aligner import Aligner
from inferaligner.errors import ArtifactError, InferAlignerError, MismatchError, SteeringError
from inferaligner.vllm import engine_args
from inferaligner.vllm.settings import ASYNC_SCHEDULER, KEY, SCHEDULER, WORKER
from tests.support.vllm_deployment import Deployment, deploy, engine, generate

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Deployment:
    return deploy(tmp_path_factory.mktemp("refusals"))


def refused(deployment: Deployment, *words: str, **options: Any) -> None:
    """Asserts that no engine comes up, and that the error names the reason."""
    with pytest.raises(Exception) as caught, engine(deployment, **options):
        pass
    text, error = "", caught.value
    while error is not None:
        text, error = f"{text} {error}", error.__cause__ or error.__context__
    for word in words:
        assert word in text, text


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"worker_cls": "auto"}, "together"),
        ({"scheduler_cls": None}, "together"),
        ({"scheduler_cls": ASYNC_SCHEDULER}, "async scheduling is off"),
        ({"additional_config": {}}, "--additional-config has no"),
        ({"additional_config": {KEY: {"aligner": "nowhere"}}}, "invalid settings"),
        ({"worker_extension_cls": "tests.vllm.test_refusals.Extension"}, "--worker-extension-cls"),
        ({"kv_sharing_fast_prefill": True}, "--kv-sharing-fast-prefill"),
        (
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            "KV connectors",
        ),
        ({"skip_tokenizer_init": True}, "skips the tokenizer"),
        ({"override_generation_config": {"no_repeat_ngram_size": 3}}, "no_repeat_ngram_size = 3"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_not_supported_does_not_start(
    deployment: Deployment, options: dict[str, Any], word: str
) -> None:
    refused(deployment, word, **options)


def test_prompt_embeddings_do_not_start(tmp_path: Path) -> None:
    """A deployment of its own: vLLM adds a token to the tokenizer that it keeps for the process."""
    refused(deploy(tmp_path), "prompt embeddings", enable_prompt_embeds=True)


def test_pipeline_parallelism_does_not_start(
    deployment: Deployment, capfd: pytest.CaptureFixture[str]
) -> None:
    """The workers are separate processes, and print the reason to their log."""
    options = {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}
    refused(deployment, "WorkerProc initialization failed", **options)
    assert "does not support pipeline parallelism" in "".join(capfd.readouterr())


class Extension:
    """Methods for a worker."""


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"num_hidden_layers": 5}, "number of decoder layers is 5, expected 4"),
        ({"hidden_size": 256}, "width of the residual stream is 256"),
        ({"intermediate_size": 96}, "shapes of the decoder's weights differ"),
    ],
)
def test_another_model_does_not_start(
    deployment: Deployment, tmp_path: Path, settings: dict[str, Any], word: str
) -> None:
    other = deploy(tmp_path, **settings)
    refused(other, word, **engine_args(deployment.folder))


def test_another_chat_template_does_not_start(deployment: Deployment, tmp_path: Path) -> None:
    other = deploy(tmp_path)
    other.tokenizer.chat_template = other.tokenizer.chat_template.replace("assistant", "model")
    other.tokenizer.save_pretrained(other.target)
    refused(other, "chat template is another one", **engine_args(deployment.folder))


def test_an_artifact_that_changed_since_does_not_start(tmp_path: Path) -> None:
    deployment = deploy(tmp_path)
    arguments = engine_args(deployment.folder)
    other = deployment.aligner.artifact.with_steering(strength=3.0)
    Aligner(other).save_pretrained(deployment.folder)
    refused(deployment, "the artifact changed", **arguments)


def test_damaged_vectors_do_not_start(tmp_path: Path) -> None:
    deployment = deploy(tmp_path)
    file = deployment.folder / "vectors.safetensors"
    data = bytearray(file.read_bytes())
    data[-4:] = b"\x00\x00\xc0\x7f"  # NaN
    file.write_bytes(bytes(data))
    with pytest.raises(ArtifactError, match="checksums differ"):
        engine_args(deployment.folder)


def test_another_version_of_the_package_does_not_start(deployment: Deployment) -> None:
    arguments = engine_args(deployment.folder)
    arguments["additional_config"][KEY]["version"] = "0.0.1"
    refused(deployment, "configured by inferaligner 0.0.1", **arguments)


def test_an_untested_vllm_does_not_start(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferaligner.vllm.compatibility.TESTED_VERSIONS", ("0.1",))
    refused(deployment, "inferaligner was tested with 0.1")
    with engine(deployment, gate={"untested_vllm": True}) as llm:
        assert generate(llm, deployment.tokens()[:1])


def test_the_self_test_finds_hooks_that_do_nothing(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inferaligner.vllm import layers

    real = layers._hook
    monkeypatch.setattr(layers, "_hook", lambda *args, **options: real(*args, **{**options, "steers": False}))
    refused(deployment, "self-test", "rows whose gate is open were not steered")
    monkeypatch.setattr(layers, "_hook", lambda *args, **options: real(*args, **{**options, "offsets": []}))
    refused(deployment, "self-test", "gave no finite number")
    monkeypatch.setattr(layers, "_hook", lambda *args, **options: lambda *_: None)
    refused(deployment, "self-test")


def test_the_self_test_finds_steering_that_ignores_the_decision(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inferaligner.vllm.device_buffers import RowBuffers

    real = RowBuffers.reset_slot

    def always_open(self: RowBuffers, slot: int, open_now: bool, *more: Any, **named: Any) -> None:
        real(self, slot, True, *more, **named)

    monkeypatch.setattr(RowBuffers, "reset_slot", always_open)
    refused(deployment, "rows whose gate is closed were changed")


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param({"prompt": "Why is the sky blue?"}, id="raw text"),
        pytest.param(
            {"prompt": "<|im_start|>user\nA map!<|im_end|>\n<|im_start|>assistant\nSure"}, id="prefilled"
        ),
        pytest.param({"prompt_token_ids": [5]}, id="one token"),
    ],
)
def test_prompts_that_do_not_end_as_a_chat_does_are_refused(deployment: Deployment, prompt: Any) -> None:
    from vllm.exceptions import VLLMValidationError

    from vllm import SamplingParams

    with engine(deployment) as llm:
        with pytest.raises(VLLMValidationError, match="chat template"):
            llm.generate([prompt], SamplingParams(max_tokens=2), use_tqdm=False)
        assert generate(llm, deployment.tokens()[:1])  # and the next one is served


def test_a_request_that_bypasses_the_front_end_gets_an_error(deployment: Deployment) -> None:
    """The scheduler checks again, and serves the others on."""
    from vllm.v1.engine.input_processor import InputProcessor

    with engine(deployment) as llm:
        checked = InputProcessor.process_inputs
        InputProcessor.process_inputs = checked.__wrapped__
        try:
            good, bad = deployment.tokens()[0], [5, 6, 7]
            outputs = generate(llm, [good, bad, good])
        finally:
            InputProcessor.process_inputs = checked
        reasons = [output.outputs[0].finish_reason for output in outputs]
        assert reasons == ["length", "error", "length"]
        assert len(outputs[1].outputs[0].token_ids) == 0
        assert outputs[0].outputs[0].token_ids == outputs[2].outputs[0].token_ids


def test_the_error_has_a_reason_where_vllm_takes_one() -> None:
    from vllm.outputs import RequestError

    from inferaligner.vllm.compatibility import fail_request

    before_033 = SimpleNamespace(grammar_compile_error_reqs=set())
    from_033 = SimpleNamespace(grammar_compile_error_reqs={})
    for scheduler in (before_033, from_033):
        fail_request(scheduler, "a", "no chat template")
    assert before_033.grammar_compile_error_reqs == {"a"}
    assert from_033.grammar_compile_error_reqs == {"a": RequestError("validation_error", "no chat template")}


def test_a_worker_that_sends_no_decision_stops_the_engine(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inferaligner.vllm.worker import GatedWorker

    with engine(deployment) as llm:
        monkeypatch.setattr(GatedWorker, "_with_decisions", lambda self, output: output)
        with pytest.raises(InferAlignerError, match="the worker sent none"):
            generate(llm, deployment.tokens()[:1])


def test_a_runner_that_bypasses_the_hook_stops_the_engine(
    deployment: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    with engine(deployment) as llm:
        worker = llm.llm_engine.model_executor.driver_worker.worker
        monkeypatch.setattr(worker.model_runner, "_model_forward", worker._runner_hook._forward)
        with pytest.raises(SteeringError, match="the gate did not see"):
            generate(llm, deployment.tokens()[:1])


def test_a_lost_score_steers(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN anywhere in the gate opens it."""
    from inferaligner.vllm import gate_of

    with engine(deployment) as llm:
        worker = llm.llm_engine.model_executor.driver_worker.worker
        layer = next(m for m in worker.get_model().modules() if hasattr(m, "inferaligner_weights"))
        layer.inferaligner_weights.fill_(torch.nan)
        for output in generate(llm, deployment.tokens()):
            report = gate_of(output)
            assert (report["open"], report["score"], report["action"]) == (True, None, "steered")
            json.dumps(report, allow_nan=False)


def test_clients_cannot_set_what_the_engine_reports(deployment: Deployment) -> None:
    from inferaligner.vllm import gate_of

    with engine(deployment) as llm:
        lie = {"kv_transfer_params": {KEY: {"open": False, "action": "none"}, "shadow": True}}
        for output in generate(llm, deployment.tokens(), extra_args=lie):
            decision, answer = deployment.expected(output.prompt_token_ids, 8)
            assert gate_of(output)["open"] == decision.open
            assert list(output.outputs[0].token_ids) == answer


def test_weights_cannot_be_replaced(deployment: Deployment) -> None:
    with engine(deployment) as llm:
        for method in (
            "reload_weights",
            "update_weights",
            "finish_weight_update",
            "reset_weights",
            "discard",
        ):
            with pytest.raises(SteeringError, match="Restart the engine"):
                llm.collective_rpc(method)


def test_deep_sleep_would_drop_the_weights(deployment: Deployment) -> None:
    with engine(deployment) as llm:
        with pytest.raises(SteeringError, match="level 2 drops the weights"):
            llm.collective_rpc("sleep", args=(2,))
        llm.collective_rpc("sleep", args=(1,))
        llm.collective_rpc("wake_up")
        (output,) = generate(llm, deployment.tokens()[:1])
        assert list(output.outputs[0].token_ids) == deployment.expected(output.prompt_token_ids, 8)[1]


def test_engine_args_name_both_classes(deployment: Deployment) -> None:
    arguments = engine_args(deployment.folder)
    assert arguments["worker_cls"] == WORKER and arguments["scheduler_cls"] == SCHEDULER
    with pytest.raises(InferAlignerError, match="cannot be used"):
        engine_args(deployment.folder, on_open="shrug")
    with pytest.raises(InferAlignerError, match="folder"):
        engine_args(deployment.aligner)
    with pytest.raises(MismatchError, match="the model here is another one"):
        from inferaligner.vllm.compatibility import check_model
        from inferaligner.vllm.settings import settings_for

        config: Any = type("Config", (), {})()
        config.hf_config = config.hf_text_config = deployment.model.config
        config.hf_config.architectures = ["GPT2LMHeadModel"]
        check_model(config, settings_for(deployment.folder))
