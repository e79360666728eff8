"""vLLM's second model runner on a CPU: its Triton kernels run in Triton's interpreter.

Slow, but the very runner that GPUs get. `VLLM_USE_V2_MODEL_RUNNER=1 pytest tests/vllm` runs any of these
tests on it. Must come before vLLM is imported: PyPI's Triton has no backend for CPUs, and without one vLLM
takes Triton for missing.
"""

from __future__ import annotations

import os
from types import SimpleNamespace


class _Driver:
    @staticmethod
    def is_active() -> bool:
        return True


def install() -> None:
    """Switches the interpreter on, and Triton's missing backend away."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=_Driver, compiler=None)
