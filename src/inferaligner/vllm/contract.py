"""What the plugin relies on in vLLM: every name, signature, attribute and piece of code that it touches.

    python -m inferaligner.vllm.contract                    # the installed vLLM
    python -m inferaligner.vllm.contract vllm-0.34.0.whl    # a wheel, or a folder with the package

reads the sources without importing vLLM, and prints everything that is missing or has changed. Run it first
when a new version comes out. What differs between supported versions is handled in `compatibility.py`;
`tests/vllm/test_contract.py` compares this list with the sources of every supported version, and with the
plugin itself.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from inferaligner.errors import InputError
from inferaligner.vllm.source_check import (
    Attributes,
    Call,
    Carrier,
    Code,
    DecoderLayer,
    Names,
    OneOf,
    Override,
    Reviewed,
    Sources,
    Statement,
)

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
    Names("vllm.v1.outputs", "EMPTY_MODEL_RUNNER_OUTPUT AsyncModelRunnerOutput"),
    Names("vllm.v1.request", "RequestStatus"),
    Names(_WORKER, "Worker"),
    Names(_CPU_WORKER, "CPUWorker"),
    Names("vllm.version", "__version__"),
)
"""What the plugin imports."""

_WORKER_OVERRIDES = (
    ("__init__", "vllm_config, *args, **options"),
    ("load_model", "**options"),
    ("compile_or_warm_up_model", ""),
    ("execute_model", "scheduler_output, *args, **options"),
    ("sample_tokens", "*args, **options"),
    ("reload_weights", "*args, **options"),
    ("update_weights", "*args, **options"),
    ("start_weight_update", "*args, **options"),
    ("start_draft_weight_update", "*args, **options"),
    ("finish_weight_update", "*args, **options"),
    ("init_weight_transfer_engine", "*args, **options"),
    ("reset_weights", "*args, **options"),
    ("discard", "*args, **options"),
    ("elastic_ep_execute", "*args, **options"),
    ("add_lora", "lora_request"),
    ("sleep", "level"),
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
"""Methods that subclasses of the plugin override (without `self`)."""

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
"""Methods that the plugin replaces on an instance or a class."""

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
"""Calls of the plugin into vLLM, with what is given."""

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
        "dtype enable_prompt_embeds enforce_eager hf_config hf_text_config is_attention_free is_diffusion "
        "is_encoder_decoder is_hybrid is_multimodal_model multimodal_config runner_type skip_tokenizer_init",
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
    Attributes("vllm.sampling_params", "SamplingParams", "max_tokens prompt_logprobs temperature"),
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
        "num_prompt_tokens num_tokens prompt_token_ids request_id resumable status trace_headers",
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
        "events finish_reason kv_transfer_params new_token_ids prefill_stats request_id stop_reason "
        "trace_headers",
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
"""Attributes that the plugin reads or sets, by the class that they belong to."""

CODE: tuple[Statement, ...] = (
    # The gate is told of every real batch, and of no dummy one.
    Code(_RUNNER_1, "GPUModelRunner.execute_model", ("self._model_forward(",)),
    Code(_RUNNER_2, "GPUModelRunner.execute_model", ("self.model_state.preprocess_state(",)),
    Code(_RUNNER_2, "GPUModelRunner._dummy_run", ("dummy_run=True",)),
    # vLLM's warm-up of the second runner goes through the worker's own methods (`GatedWorker._warming_up`).
    Code(_WORKER, "Worker", ("warmup_kernels(self.model_runner, self.execute_model, self.sample_tokens)",)),
    # Every look into the prefix cache, and every block that goes there, passes the coordinator.
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
    # Messages between scheduler and worker, and reports to the front end.
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
    # A graph that was compiled without the gate is never loaded.
    Code("vllm.config.vllm", "VllmConfig.compute_hash", ("self.additional_config",)),
    # Flags of `vllm serve`, and the ranks of adapters that it takes (`adapters._RANKS`).
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
    # The front end's flags: in 0.32 in another folder.
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
"""What vLLM does where the plugin takes hold."""

_OPTION = "can it move tokens, share blocks or run layers past the gate? Then refuse it in compatibility.py"
_METHOD = "can it replace weights or run the model without the gate? Then refuse it in worker.py"
_RESULT = "worker.py wraps this class; hand the method on"

REVIEWED: tuple[Reviewed, ...] = (
    Reviewed(
        "vllm.config.vllm",
        "VllmConfig",
        "fields",
        """
        additional_config attention_config aux_output_config cache_config compilation_config
        device_config diffusion_config ec_manager_config ec_transfer_config engram_config
        instance_id kernel_config kv_events_config kv_transfer_config load_config logging_config
        lora_config mamba_config model_config observability_config offload_config
        optimization_level parallel_config performance_mode profiler_config quant_config
        reasoning_config scheduler_config shutdown_timeout speculative_config
        structured_outputs_config watchdog_config watermark_config weight_transfer_config
        """,
        _OPTION,
    ),
    Reviewed(
        "vllm.config.parallel",
        "ParallelConfig",
        "fields",
        """
        all2all_backend assigned_physical_gpu_ids cp_kv_cache_interleave_size
        cpu_distributed_timeout_seconds data_parallel_backend data_parallel_external_lb
        data_parallel_hybrid_lb data_parallel_index data_parallel_master_ip
        data_parallel_master_port data_parallel_rank data_parallel_rank_local
        data_parallel_rpc_port data_parallel_size data_parallel_size_local
        dbo_decode_token_threshold dbo_prefill_token_threshold dcp_comm_backend
        dcp_kv_cache_interleave_size dcp_q_replicate decode_context_parallel_size
        disable_custom_all_reduce disable_nccl_for_dp_synchronization distributed_executor_backend
        distributed_timeout_seconds dp_sync_interval elastic_ep_max_dp_size
        enable_batch_sharded_sampling enable_dbo enable_elastic_ep enable_ep_weight_filter
        enable_eplb enable_expert_parallel enable_fault_tolerance enable_hc_sp
        enable_shm_tensor_arena eplb_config expert_placement_strategy fault_tolerance_config
        is_moe_model master_addr master_port max_parallel_loading_workers nnodes node_rank
        numa_bind numa_bind_cpus numa_bind_nodes pipeline_parallel_size placement_group
        prefill_context_parallel_size rank ray_runtime_env ray_workers_use_nsight
        tensor_parallel_size ubatch_size worker_cls worker_extension_cls world_size
        """,
        _OPTION,
    ),
    Reviewed(
        "vllm.config.kernel",
        "KernelConfig",
        "fields",
        """
        enable_cutedsl_warmup enable_flashinfer_autotune enable_jit_warmup
        enable_rocm_segmented_attn_autotune ir_op_priority linear_backend linear_backend_per_quant
        moe_backend monokernel sparse_indexer_topk_backend
        """,
        _OPTION,
    ),
    Reviewed(
        "vllm.config.cache",
        "CacheConfig",
        "fields",
        """
        DEFAULT_BLOCK_SIZE block_size cache_dtype cache_hit_alignment_tokens
        effective_attention_block_size enable_mamba_shared_prefix_checkpoint enable_prefix_caching
        gpu_memory_utilization hash_block_size is_attention_free kv_cache_dtype_skip_layers
        kv_cache_layout kv_cache_max_concurrency kv_cache_memory_bytes kv_cache_size_tokens
        kv_offloading_backend kv_offloading_size kv_sharing_fast_prefill mamba_block_size
        mamba_cache_dtype mamba_cache_mode mamba_page_size_padded mamba_ssm_cache_dtype
        num_cpu_blocks num_gpu_blocks num_gpu_blocks_override prefix_cache_retention_interval
        prefix_caching_hash_algo prefix_match_unit replayssm_buffer_len
        simple_cpu_offload_num_blocks skip_page_size_padded sliding_window swa_bounded_replay
        use_kda_recoverssm use_replayssm user_specified_block_size
        """,
        _OPTION,
    ),
    Reviewed(
        "vllm.config.scheduler",
        "SchedulerConfig",
        "fields",
        """
        DEFAULT_MAX_NUM_BATCHED_TOKENS DEFAULT_MAX_NUM_BATCHED_TOKENS_FOR_BATCHED_DP
        DEFAULT_MAX_NUM_SEQS async_scheduling disable_chunked_mm_input
        disable_hybrid_kv_cache_manager enable_chunked_prefill encoder_cache_size
        is_encoder_decoder is_multimodal_model long_prefill_token_threshold
        long_prefill_token_threshold_adaptive max_model_len max_num_active_seqs
        max_num_batched_tokens max_num_encoder_input_tokens max_num_queued_reqs
        max_num_queued_tokens max_num_scheduled_tokens max_num_seqs policy
        prefill_schedule_interval runner_type scheduler_cls scheduler_reserve_full_isl
        stream_interval watermark
        """,
        _OPTION,
    ),
    Reviewed(
        "vllm.config.lora",
        "LoRAConfig",
        "fields",
        """
        default_mm_loras enable_mixed_moe_lora_format enable_moe_shared_loras
        enable_tower_connector_lora fully_sharded_loras lora_dtype max_cpu_loras
        max_lora_cls_labels max_lora_rank max_loras specialize_active_lora target_modules
        """,
        _OPTION,
    ),
    Reviewed(
        "vllm.config.multimodal",
        "MultiModalConfig",
        "fields",
        """
        allow_missing_mm_embeddings enable_mm_embeds interleave_mm_strings language_model_only
        limit_per_prompt media_io_kwargs mm_device_do_normalize mm_encoder_attn_backend
        mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin
        mm_encoder_fp8_scale_save_path mm_encoder_only mm_encoder_tp_mode mm_hasher_algorithm
        mm_ipc_gpu_memory_gb mm_processor_cache_gb mm_processor_cache_type mm_processor_kwargs
        mm_shm_cache_max_object_size_mb mm_tensor_ipc skip_mm_profiling video_pruning_method
        video_pruning_rate
        """,
        _OPTION,
    ),
    Reviewed(
        "vllm.config.model",
        "ModelConfig",
        "fields",
        """
        allow_deprecated_quantization allowed_local_media_path allowed_media_domains code_revision
        config_format convert disable_cascade_attn disable_sliding_window dtype
        enable_cumem_allocator enable_mm_embeds enable_nccl_comm_suspend enable_prompt_embeds
        enable_sleep_mode enable_trace_replay enforce_eager generation_config hf_config
        hf_config_path hf_overrides hf_text_config hf_token interleave_mm_strings
        io_processor_plugin is_submodel_config language_model_only limit_mm_per_prompt
        logits_processors logprobs_mode max_logprobs max_model_len media_io_kwargs
        mm_device_do_normalize mm_encoder_attn_backend mm_encoder_attn_dtype
        mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin mm_encoder_fp8_scale_save_path
        mm_encoder_only mm_encoder_tp_mode mm_hasher_algorithm mm_ipc_gpu_memory_gb
        mm_processor_cache_gb mm_processor_cache_type mm_processor_device mm_processor_kwargs
        mm_shm_cache_max_object_size_mb mm_tensor_ipc model model_class_overrides model_impl
        model_weights multimodal_config override_generation_config pooler_config quantization
        quantization_config renderer_num_workers return_sampling_mask revision runner seed
        served_model_name skip_mm_profiling skip_tokenizer_init sleep_mode_backend
        sleep_mode_offload_cudagraph sleep_preserve_parameter_names spec_target_max_model_len
        tokenizer tokenizer_mode tokenizer_revision trust_remote_code use_fp64_gumbel
        video_pruning_method video_pruning_rate word_embeddings_untied_by_checkpoint
        """,
        _OPTION,
    ),
    Reviewed(
        "vllm.config.compilation",
        "CompilationConfig",
        "fields",
        """
        backend cache_dir compilation_time compile_cache_save_format compile_mm_encoder
        compile_ranges_endpoints compile_sizes cudagraph_capture_sizes cudagraph_copy_inputs
        cudagraph_decoder_replay cudagraph_mm_encoder cudagraph_mode cudagraph_num_of_warmups
        cudagraph_specialize_lora custom_ops debug_dump_path
        decoder_replay_cudagraph_capture_sizes decoder_replay_trim_threshold disabled_custom_ops
        dynamic_shapes_config enabled_custom_ops encoder_compilation_time
        encoder_cudagraph_max_frames_per_batch encoder_cudagraph_max_vision_items_per_batch
        encoder_cudagraph_token_budgets fast_moe_cold_start inductor_compile_config
        inductor_passes ir_enable_torch_wrap local_cache_dir max_cudagraph_capture_size mode
        pass_config splitting_ops static_all_moe_layers static_forward_context traced_files
        use_inductor_graph_partition
        """,
        _OPTION,
    ),
    Reviewed(
        "vllm.v1.worker.cpu_worker",
        "CPUWorker",
        "methods",
        """
        add_lora annotate_profile apply_model check_health checkpoint_prepare checkpoint_restore
        compile_or_warm_up_model compute_weight_checksums determine_available_memory discard
        elastic_ep_execute execute_dummy_batch execute_model finish_weight_update
        get_cache_block_size_bytes get_compilation_match_table get_draft_model
        get_encoder_timing_stats get_kv_cache_spec get_kv_connector_handshake_metadata get_model
        get_model_inspection get_simple_cpu_offload_num_cpu_blocks get_supported_kv_cache_layouts
        get_supported_tasks handle_ft_command init_device init_weight_transfer_engine
        initialize_from_config list_loras load_model pin_lora profile randomize_dummy_inputs
        release_late_interaction_query_cache reload_weights remove_lora reset_encoder_cache
        reset_mm_cache reset_weights sample_tokens save_sharded_state save_tensorized_model
        set_kv_cache_layout shutdown shutdown_weight_transfer_engine sleep sleep_mode_backend
        start_draft_weight_update start_weight_update supports_draft_weight_updates
        synchronize_device take_draft_token_ids update_config update_max_model_len update_weights
        vocab_size wake_up
        """,
        _METHOD,
    ),
    Reviewed(
        "vllm.v1.outputs",
        "AsyncModelRunnerOutput",
        "methods",
        """
        get_kv_connector_output get_output
        """,
        _RESULT,
    ),
)
"""Options and methods that somebody has looked at; a new one is a question."""

CONTRACT: tuple[Statement, ...] = (
    *IMPORTS,
    *OVERRIDES,
    *PATCHES,
    *CALLS,
    *ATTRIBUTES,
    *CODE,
    *REVIEWED,
)


def misses(sources: Sources) -> list[str]:
    """What of the contract these sources do not keep, one sentence each, in the order of the contract."""
    return list(dict.fromkeys(miss for statement in CONTRACT for miss in statement.misses(sources)))


def installed() -> Path | None:
    """The folder of the installed vLLM, which is not imported for it; None if there is none."""
    spec = importlib.util.find_spec("vllm")
    return None if spec is None or spec.origin is None else Path(spec.origin).parent


def main(arguments: list[str]) -> int:
    """Prints the misses of each place given, or of the installed vLLM; 1 if there are any, 2 without any
    sources."""
    places = [Path(each) for each in arguments] or [each for each in (installed(),) if each is not None]
    if not places:
        print("vLLM is not installed. Give a wheel, or a folder that holds the package.", file=sys.stderr)
        return 2
    found = 0
    for place in places:
        try:
            sources = Sources(place)
        except InputError as error:
            print(error, file=sys.stderr)
            return 2
        here = misses(sources)
        found += len(here)
        print(f"vLLM {sources.version}: {len(CONTRACT)} statements, {len(here)} misses")
        for miss in here:
            print(f"  {miss}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
