"""The contract with vLLM: every name, signature, attribute and piece of code that the plugin relies on.

    python -m inferaligner.vllm.contract                    # the installed vLLM
    python -m inferaligner.vllm.contract vllm-0.34.0.whl    # a wheel, or a folder with the package

The command reads the sources without importing vLLM, and prints everything that is missing, changed or new.
Run it first when a new version of vLLM is released. `compatibility.py` handles the differences between
supported versions; `tests/vllm/test_contract.py` compares this list with the sources of every supported
version, and with the plugin itself.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from inferaligner.errors import InputError
from inferaligner.vllm.contract_statements import (
    Attributes,
    Call,
    Carrier,
    Code,
    DecoderLayer,
    Names,
    OneOf,
    Override,
    Statement,
)
from inferaligner.vllm.reviewed_options import REVIEWED
from inferaligner.vllm.vllm_source import Sources

_SCHEDULER = "vllm.v1.core.sched.scheduler"
_OUTPUT = "vllm.v1.core.sched.output"
_CACHE = "vllm.v1.core.kv_cache_manager"
_COORDINATOR = "vllm.v1.core.kv_cache_coordinator"
_WORKER = "vllm.v1.worker.gpu_worker"
_CPU_WORKER = "vllm.v1.worker.cpu_worker"
_RUNNER_1 = "vllm.v1.worker.gpu_model_runner"
_RUNNER_2 = "vllm.v1.worker.gpu.model_runner"
_STATE = "vllm.v1.worker.gpu.model_states.interface"
_INPUT = "vllm.v1.engine.input_processor"
_PROCESSOR = "vllm.v1.engine.output_processor"
_MODELS = "vllm.model_executor.models"

IMPORTS: tuple[Names, ...] = (
    Names("vllm", "LLM SamplingParams envs"),
    Names("vllm.engine.arg_utils", "EngineArgs"),
    Names("vllm.entrypoints.cli.main", "main"),
    Names("vllm.exceptions", "VLLMValidationError"),
    Names("vllm.lora.request", "LoRARequest"),
    Names("vllm.outputs", "RequestError"),
    Names("vllm.platforms", "current_platform"),
    Names("vllm.tokenizers", "cached_tokenizer_from_config"),
    Names("vllm.transformers_utils.processor", "cached_processor_from_config"),
    Names("vllm.utils.argparse_utils", "FlexibleArgumentParser"),
    Names("vllm.v1.core.sched.async_scheduler", "AsyncScheduler"),
    Names(_SCHEDULER, "Scheduler"),
    Names("vllm.v1.engine", "EngineCoreOutput EngineCoreOutputs FinishReason"),
    Names(_INPUT, "InputProcessor"),
    Names(_PROCESSOR, "OutputProcessor"),
    Names("vllm.v1.outputs", "EMPTY_MODEL_RUNNER_OUTPUT AsyncModelRunnerOutput LogprobsLists"),
    Names("vllm.v1.request", "RequestStatus"),
    Names(_WORKER, "Worker"),
    Names(_CPU_WORKER, "CPUWorker"),
    Names("vllm.version", "__version__"),
)
"""Names that the plugin imports."""

_REFUSED_METHODS = """
reload_weights update_weights start_weight_update start_draft_weight_update finish_weight_update
init_weight_transfer_engine reset_weights discard elastic_ep_execute
"""
_WORKER_OVERRIDES = (
    ("__init__", "vllm_config, *args, **options"),
    ("load_model", "**options"),
    ("compile_or_warm_up_model", ""),
    ("execute_model", "scheduler_output, *args, **options"),
    ("sample_tokens", "*args, **options"),
    ("add_lora", "lora_request"),
    ("sleep", "level"),
    *((name, "*args, **options") for name in _REFUSED_METHODS.split()),
)

OVERRIDES: tuple[Override, ...] = (
    *(Override(_WORKER, f"Worker.{name}", ours) for name, ours in _WORKER_OVERRIDES),
    *(Override(_CPU_WORKER, f"CPUWorker.{name}", ours) for name, ours in _WORKER_OVERRIDES),
    Override(_SCHEDULER, "Scheduler.__init__", "vllm_config, *args, **options"),
    Override(_SCHEDULER, "Scheduler.add_request", "request"),
    Override(_SCHEDULER, "Scheduler._handle_blocked_waiting_request", "request"),
    Override(_SCHEDULER, "Scheduler._free_request", "request, *args, **options"),
    Override(_SCHEDULER, "Scheduler.schedule", "*args, **options"),
    Override(_SCHEDULER, "Scheduler.update_from_output", "scheduler_output, model_runner_output"),
    Override("vllm.v1.outputs", "AsyncModelRunnerOutput.get_output", ""),
)
"""Methods that the plugin's subclasses override."""

PATCHES: tuple[Override, ...] = (
    Override(_CACHE, "KVCacheManager.get_computed_blocks", "request, *args, **options"),
    Override(_COORDINATOR, "KVCacheCoordinator.find_longest_cache_hit", "block_hashes, max_cache_hit_length"),
    Override(
        _COORDINATOR, "UnitaryKVCacheCoordinator.find_longest_cache_hit", "block_hashes, max_cache_hit_length"
    ),
    Override(
        _COORDINATOR, "HybridKVCacheCoordinator.find_longest_cache_hit", "block_hashes, max_cache_hit_length"
    ),
    Override(_COORDINATOR, "KVCacheCoordinator.cache_blocks", "request, num_computed_tokens"),
    Override(_RUNNER_1, "GPUModelRunner._model_forward", "*args, **options"),
    Override(_STATE, "ModelState.preprocess_state", "input_batch, *args, **options"),
    Override(_INPUT, "InputProcessor.process_inputs", "*args, **options"),
    Override(_PROCESSOR, "OutputProcessor.process_outputs", "engine_core_outputs, *args, **options"),
)
"""Methods that the plugin replaces on an instance or a class of vLLM."""

CALLS: tuple[Call, ...] = (
    Call("vllm.engine.arg_utils", "EngineArgs.add_cli_args", "parser"),
    Call("vllm.entrypoints.cli.main", "main", ""),
    Call("vllm.entrypoints.llm", "LLM.collective_rpc", "method, args=()"),
    Call("vllm.entrypoints.llm", "LLM.generate", "prompts, parameters, use_tqdm=False, lora_request=None"),
    Call("vllm.v1.engine.core_client", "EngineCoreClient.shutdown", ""),
    Call("vllm.tokenizers", "cached_tokenizer_from_config", "model_config"),
    Call("vllm.transformers_utils.processor", "cached_processor_from_config", "model_config"),
    Call("vllm.exceptions", "VLLMValidationError.__init__", "message"),
    Call(_SCHEDULER, "Scheduler._preempt_request", "request, timestamp, drop_stale_output=True"),
    Call(_SCHEDULER, "Scheduler.finish_requests", "request_id, status"),
    Call(_CACHE, "KVCacheManager.cache_blocks", "request, num_computed_tokens"),
    Call("vllm.v1.request", "Request.take_events", ""),
    Call("vllm.v1.request", "Request.take_prefill_stats", ""),
    Call(_RUNNER_1, "GPUModelRunner._dummy_run", "tokens, force_attention=True"),
    Call(_RUNNER_2, "GPUModelRunner._dummy_run", "tokens"),
    Call(_RUNNER_1, "GPUModelRunner.get_model", ""),
    Call(_RUNNER_2, "GPUModelRunner.get_model", ""),
    Call("vllm.v1.outputs", "AsyncModelRunnerOutput.get_output", ""),
    Call("vllm.platforms.interface", "Platform.is_cuda", ""),
    Call("vllm.platforms.interface", "Platform.is_cpu", ""),
)
"""Functions of vLLM that the plugin calls, with the arguments."""

ATTRIBUTES: tuple[Attributes | Names, ...] = (
    Names("vllm.envs", "VLLM_ALLOW_RUNTIME_LORA_UPDATING VLLM_SERVER_DEV_MODE"),
    # -- configuration
    Attributes(
        "vllm.config.vllm",
        "VllmConfig",
        "additional_config cache_config ec_transfer_config kernel_config kv_transfer_config lora_config "
        "model_config parallel_config scheduler_config speculative_config weight_transfer_config",
    ),
    Attributes(
        "vllm.config.parallel",
        "ParallelConfig",
        "decode_context_parallel_size enable_elastic_ep pipeline_parallel_size prefill_context_parallel_size "
        "use_sequence_parallel_moe use_ubatching worker_cls worker_extension_cls",
    ),
    Attributes("vllm.config.cache", "CacheConfig", "enable_prefix_caching kv_sharing_fast_prefill"),
    Attributes(
        "vllm.config.scheduler",
        "SchedulerConfig",
        "async_scheduling max_num_batched_tokens max_num_seqs scheduler_cls",
    ),
    Attributes("vllm.config.lora", "LoRAConfig", "enable_tower_connector_lora max_lora_rank"),
    Attributes(
        "vllm.config.model",
        "ModelConfig",
        "dtype enable_prompt_embeds enforce_eager generation_config hf_config hf_text_config "
        "is_attention_free is_diffusion is_encoder_decoder is_hybrid is_multimodal_model multimodal_config "
        "override_generation_config runner_type skip_tokenizer_init try_get_generation_config",
    ),
    Attributes("vllm.config.multimodal", "MultiModalConfig", "enable_mm_embeds mm_encoder_only"),
    Attributes("vllm.config.speculative", "SpeculativeConfig", "method"),
    Attributes("vllm.platforms.interface", "Platform", "device_name"),
    Attributes(
        "vllm.engine.arg_utils",
        "EngineArgs",
        "additional_config async_scheduling enable_lora enable_prefix_caching enforce_eager max_lora_rank "
        "revision scheduler_cls tokenizer worker_cls",
    ),
    # -- front end
    Attributes("vllm.entrypoints.llm", "LLM", "llm_engine"),
    Attributes("vllm.v1.engine.llm_engine", "LLMEngine", "engine_core"),
    Attributes("vllm.sampling_params", "SamplingParams", "logprobs max_tokens prompt_logprobs temperature"),
    Attributes("vllm.lora.request", "LoRARequest", "load_inplace lora_int_id lora_name lora_path"),
    Attributes("vllm.outputs", "RequestOutput", "kv_transfer_params"),
    Attributes("vllm.outputs", "RequestError", "code message"),
    Attributes("vllm.v1.engine", "EngineCoreRequest", "lora_request prompt_token_ids resumable"),
    Attributes(_INPUT, "InputProcessor", "vllm_config"),
    Attributes(_PROCESSOR, "OutputProcessor", "request_states"),
    Attributes(_PROCESSOR, "RequestState", "external_req_id parent_req"),
    Attributes("vllm.v1.engine.parallel_sampling", "ParentRequest", "external_req_id"),
    # -- scheduler
    Attributes(
        _SCHEDULER,
        "Scheduler",
        "grammar_compile_error_reqs kv_cache_manager prev_step_scheduled_req_ids requests running",
    ),
    Attributes(_CACHE, "KVCacheManager", "coordinator"),
    Attributes(
        "vllm.v1.request",
        "Request",
        "client_index lora_request num_computed_tokens num_output_placeholders num_output_tokens "
        "num_prompt_tokens num_tokens prompt_token_ids request_id resumable sampling_params status "
        "trace_headers",
    ),
    Attributes("vllm.v1.request", "RequestStatus", "FINISHED_STOPPED RUNNING"),
    Attributes("vllm.v1.engine", "FinishReason", "STOP"),
    Attributes(
        _OUTPUT,
        "SchedulerOutput",
        "finished_req_ids num_scheduled_tokens preempted_req_ids scheduled_cached_reqs scheduled_new_reqs "
        "total_num_scheduled_tokens",
    ),
    Attributes(_OUTPUT, "NewRequestData", "prompt_token_ids req_id"),
    Attributes(_OUTPUT, "CachedRequestData", "resumed_req_ids"),
    Attributes(
        "vllm.v1.engine",
        "EngineCoreOutput",
        "events finish_reason kv_transfer_params new_logprobs new_token_ids prefill_stats request_id "
        "stop_reason trace_headers",
    ),
    Attributes("vllm.v1.engine", "EngineCoreOutputs", "outputs"),
    # -- worker
    Attributes(_WORKER, "Worker", "device model_config model_runner rank vllm_config"),
    Attributes(_CPU_WORKER, "CPUWorker", "device model_config model_runner rank vllm_config"),
    Attributes(
        "vllm.v1.outputs", "ModelRunnerOutput", "prompt_logprobs_dict req_id_to_index sampled_token_ids"
    ),
    Attributes(_RUNNER_1, "GPUModelRunner", "input_batch num_prompt_logprobs requests"),
    Attributes("vllm.v1.worker.gpu_input_batch", "InputBatch", "num_computed_tokens_cpu req_ids vocab_size"),
    Attributes("vllm.v1.worker.gpu_input_batch", "CachedRequestState", "sampling_params"),
    Attributes(_RUNNER_2, "GPUModelRunner", "model_state"),
    Attributes(
        "vllm.v1.worker.gpu.input_batch",
        "InputBatch",
        "num_computed_tokens_np num_reqs query_start_loc_np req_ids",
    ),
)
"""Attributes that the plugin reads or sets, by their class."""

CODE: tuple[Statement, ...] = (
    # The last token of a stopped answer is left out of its text (`refusal.refusal_tokens`).
    Code(
        "vllm.v1.engine.detokenizer",
        "BaseIncrementalDetokenizer.update",
        ("new_token_ids = new_token_ids[:-1]",),
    ),
    # The runner hook is called for every real batch, and for no dummy batch.
    Code(_RUNNER_1, "GPUModelRunner.execute_model", ("self._model_forward(",)),
    Code(_RUNNER_2, "GPUModelRunner.execute_model", ("self.model_state.preprocess_state(",)),
    Code(_RUNNER_2, "GPUModelRunner._dummy_run", ("dummy_run=True",)),
    # vLLM's warm-up of the second runner goes through the worker's own methods (`GatedWorker._warming_up`).
    Code(_WORKER, "Worker", ("warmup_kernels(self.model_runner, self.execute_model, self.sample_tokens)",)),
    # Every read and write of the prefix cache goes through the coordinator.
    Code(_CACHE, "KVCacheManager.get_computed_blocks", ("self.coordinator.find_longest_cache_hit(",)),
    Code(_CACHE, "KVCacheManager.allocate_slots", ("self.coordinator.cache_blocks(",)),
    Code(_CACHE, "KVCacheManager.cache_blocks", ("self.coordinator.cache_blocks(",)),
    Code(
        _SCHEDULER, "Scheduler._get_local_prefix_cache_hit", ("self.kv_cache_manager.get_computed_blocks(",)
    ),
    # Requests that cannot be gated end with an error (`compatibility.fail_request`).
    Code(
        _SCHEDULER,
        "Scheduler.__init__",
        (
            "self.grammar_compile_error_reqs: set[str] = set() || "
            "self.grammar_compile_error_reqs: dict[str, RequestError] = {}",
        ),
    ),
    Code(
        _SCHEDULER,
        "Scheduler.update_from_output",
        ("self.grammar_compile_error_reqs", "self.finish_requests(", "self.kv_cache_manager.take_events()"),
    ),
    Code(_SCHEDULER, "Scheduler.schedule", ("self._handle_blocked_waiting_request(",)),
    Code(_SCHEDULER, "Scheduler._preempt_request", ("drop_stale_output",)),
    Code(_SCHEDULER, "Scheduler.reset_prefix_cache", ("self.prev_step_scheduled_req_ids.clear()",)),
    # Carriers of the messages between scheduler and worker, and of the reports to the front end.
    Carrier(_OUTPUT, "SchedulerOutput"),
    Carrier("vllm.v1.outputs", "ModelRunnerOutput"),
    Code(_PROCESSOR, "OutputProcessor.process_outputs", ("engine_core_output.kv_transfer_params",)),
    Code(
        "vllm.entrypoints.openai.chat_completion.serving",
        "",
        ("kv_transfer_params=final_res.kv_transfer_params",),
    ),
    Attributes(
        "vllm.entrypoints.openai.chat_completion.protocol", "ChatCompletionResponse", "kv_transfer_params"
    ),
    Attributes("vllm.entrypoints.openai.completion.protocol", "CompletionResponse", "kv_transfer_params"),
    Attributes("vllm.entrypoints.openai.responses.protocol", "ResponsesResponse", "kv_transfer_params"),
    # vLLM never loads a graph that was compiled without the gate.
    Code("vllm.config.vllm", "VllmConfig.compute_hash", ("self.additional_config",)),
    # Flags of `vllm serve`, and the adapter ranks that it accepts (`adapters._RANKS`).
    Code(
        "vllm.engine.arg_utils",
        "EngineArgs.add_cli_args",
        (
            "'--additional-config'",
            "'--async-scheduling'",
            "'--enable-lora'",
            "'--max-lora-rank'",
            "'--revision'",
            "'--scheduler-cls'",
            "'--tokenizer'",
            "'--worker-cls'",
        ),
    ),
    # The front end's flags are in another module in 0.32.
    OneOf(
        (
            Attributes("vllm.entrypoints.common.cli_args", "FrontendArgs", "lora_modules middleware"),
            Attributes("vllm.entrypoints.launchers.cli_args", "FrontendArgs", "lora_modules middleware"),
        )
    ),
    Code("vllm.config.lora", "", ("MaxLoRARanks = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]",)),
    # Decoder layers of the architectures that the tests compare with transformers.
    DecoderLayer(f"{_MODELS}.llama", "LlamaDecoderLayer", pair=True),
    DecoderLayer(f"{_MODELS}.qwen2", "Qwen2DecoderLayer", pair=True),
    DecoderLayer(f"{_MODELS}.qwen3", "Qwen3DecoderLayer", pair=True),
    DecoderLayer(f"{_MODELS}.qwen3_moe", "Qwen3MoeDecoderLayer", pair=True),
    DecoderLayer(f"{_MODELS}.gemma2", "Gemma2DecoderLayer", pair=True),
    DecoderLayer(f"{_MODELS}.gemma3", "Gemma3DecoderLayer", pair=True),
    DecoderLayer(f"{_MODELS}.mixtral", "MixtralDecoderLayer", pair=True),
    DecoderLayer(f"{_MODELS}.falcon", "FalconDecoderLayer", pair=False),
    DecoderLayer(f"{_MODELS}.opt", "OPTDecoderLayer", pair=False),
    DecoderLayer(f"{_MODELS}.bloom", "BloomBlock", pair=False),
)
"""Code of vLLM at the places where the plugin acts."""

CONTRACT: tuple[Statement, ...] = (
    *IMPORTS,
    *OVERRIDES,
    *PATCHES,
    *CALLS,
    *ATTRIBUTES,
    *CODE,
    *REVIEWED,
)


def violations(sources: Sources) -> list[str]:
    """How these sources violate the contract, one sentence each, in the order of the contract."""
    return list(dict.fromkeys(each for statement in CONTRACT for each in statement.violations(sources)))


def installed() -> Path | None:
    """The folder of the installed vLLM, without importing it; None if vLLM is not installed."""
    spec = importlib.util.find_spec("vllm")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def main(arguments: list[str]) -> int:
    """Prints the violations of each given vLLM, or of the installed one.

    Args:
        arguments: wheels, or folders that hold the package.

    Returns:
        The exit code: 0, 1 with violations, or 2 if no vLLM can be read.
    """
    places = [Path(each) for each in arguments] or [each for each in (installed(),) if each is not None]
    if not places:
        print("vLLM is not installed. Give a wheel, or a folder that holds the package.", file=sys.stderr)
        return 2
    total = 0
    for place in places:
        try:
            sources = Sources(place)
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        found = violations(sources)
        total += len(found)
        print(f"vLLM {sources.version}: {len(CONTRACT)} statements, {len(found)} violations")
        for violation in found:
            print(f"  {violation}")
    return 1 if total else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
