"""vLLM's worker class for this machine, which the workers of this package extend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vllm.platforms import current_platform

from inferaligner.errors import SteeringError

if TYPE_CHECKING or current_platform.is_cuda():
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker
elif current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    raise SteeringError(
        f"inferaligner supports vLLM on NVIDIA GPUs and on CPUs; this is {current_platform.device_name}."
    )

__all__ = ["PlatformWorker"]
