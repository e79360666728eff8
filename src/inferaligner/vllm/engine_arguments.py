"""The arguments with which vLLM is started so that it runs the gate: in Python, and as a command."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inferaligner.vllm.settings import (
    ASYNC_SCHEDULER,
    KEY,
    MIDDLEWARE,
    SCHEDULER,
    WORKER,
    EngineSettings,
    settings_for,
)

if TYPE_CHECKING:
    from inferaligner.aligner import Aligner


def engine_args(
    aligner: str | Path | Aligner, *, async_scheduling: bool = False, **choices: Any
) -> dict[str, Any]:
    """Keyword arguments for `vllm.LLM(...)` or `AsyncEngineArgs(...)` that run the gate.

    Example:
        llm = LLM("my-model", **engine_args("my-aligner", shadow=True))

    Args:
        aligner: the folder that `inferaligner fit` wrote.
        async_scheduling: schedule one step ahead of the device (GPU only).
        choices: fields of `EngineSettings`, such as `shadow`, `on_open`, `prompts` or `audit_log`.

    Returns:
        The arguments `worker_cls`, `scheduler_cls`, `async_scheduling` and `additional_config`.

    Raises:
        ArtifactError: the folder does not hold a usable aligner.
        InputError: a choice does not exist, or the aligner cannot do it.
    """
    settings = settings_for(aligner, **choices)
    if find_spec("vllm") is not None:
        from inferaligner.vllm.frontend_patches import install

        install()
    return {
        "worker_cls": WORKER,
        "scheduler_cls": ASYNC_SCHEDULER if async_scheduling else SCHEDULER,
        "async_scheduling": async_scheduling,
        "additional_config": {KEY: settings.model_dump(mode="json")},
    }


def serve_command(
    target: str, settings: EngineSettings, flags: Sequence[str] = (), *, async_scheduling: bool = False
) -> list[str]:
    """The `vllm serve` command that runs the gate, word by word.

    Args:
        target: the model, as `vllm serve` takes it.
        settings: the operator's choices.
        flags: more flags of `vllm serve`.
        async_scheduling: schedule one step ahead of the device (GPU only).
    """
    return [
        "vllm",
        "serve",
        target,
        "--worker-cls",
        WORKER,
        "--scheduler-cls",
        ASYNC_SCHEDULER if async_scheduling else SCHEDULER,
        "--async-scheduling" if async_scheduling else "--no-async-scheduling",
        "--middleware",
        MIDDLEWARE,
        "--additional-config",
        json.dumps({KEY: settings.model_dump(mode="json")}, separators=(",", ":")),
        *flags,
    ]
