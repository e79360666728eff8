"""vLLM's options and worker methods that were reviewed: can they bypass the gate?

The ones that can are refused in `compatibility.py` and `worker.py`. `contract.py` reports every new one.
"""

from __future__ import annotations

from inferaligner.vllm.contract_statements import Reviewed

_OPTION = "can it move tokens, share blocks or run layers past the gate? Then refuse it in compatibility.py"
_METHOD = "can it replace weights or run the model without the gate? Then refuse it in worker.py"
_RESULT = "worker.py wraps this class; delegate the method"


def _options(module: str, owner: str, names: str) -> Reviewed:
    return Reviewed(module, owner, "fields", names, _OPTION)


REVIEWED: tuple[Reviewed, ...] = (
    _options(
        "vllm.config.vllm",
        "VllmConfig",
        """
        additional_config attention_config aux_output_config cache_config compilation_config
        device_config diffusion_config ec_manager_config ec_transfer_config engram_config
        instance_id kernel_config kv_events_config kv_transfer_config load_config logging_config
        lora_config mamba_config model_config observability_config offload_config
        optimization_level parallel_config performance_mode profiler_config quant_config
        reasoning_config scheduler_config shutdown_timeout speculative_config
        structured_outputs_config watchdog_config watermark_config weight_transfer_config
        """,
    ),
    _options(
        "vllm.config.parallel",
        "ParallelConfig",
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
    ),
    _options(
        "vllm.config.kernel",
        "KernelConfig",
        """
        enable_cutedsl_warmup enable_flashinfer_autotune enable_jit_warmup
        enable_rocm_segmented_attn_autotune ir_op_priority linear_backend linear_backend_per_quant
        moe_backend monokernel sparse_indexer_topk_backend
        """,
    ),
    _options(
        "vllm.config.cache",
        "CacheConfig",
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
    ),
    _options(
        "vllm.config.scheduler",
        "SchedulerConfig",
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
    ),
    _options(
        "vllm.config.lora",
        "LoRAConfig",
        """
        default_mm_loras enable_mixed_moe_lora_format enable_moe_shared_loras
        enable_tower_connector_lora fully_sharded_loras lora_dtype max_cpu_loras
        max_lora_cls_labels max_lora_rank max_loras specialize_active_lora target_modules
        """,
    ),
    _options(
        "vllm.config.multimodal",
        "MultiModalConfig",
        """
        allow_missing_mm_embeddings enable_mm_embeds interleave_mm_strings language_model_only
        limit_per_prompt media_io_kwargs mm_device_do_normalize mm_encoder_attn_backend
        mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin
        mm_encoder_fp8_scale_save_path mm_encoder_only mm_encoder_tp_mode mm_hasher_algorithm
        mm_ipc_gpu_memory_gb mm_processor_cache_gb mm_processor_cache_type mm_processor_kwargs
        mm_shm_cache_max_object_size_mb mm_tensor_ipc skip_mm_profiling video_pruning_method
        video_pruning_rate
        """,
    ),
    _options(
        "vllm.config.model",
        "ModelConfig",
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
    ),
    _options(
        "vllm.config.compilation",
        "CompilationConfig",
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
"""The reviewed options and methods; a new one must be reviewed before its version of vLLM is accepted."""
