"""vLLM's second model runner on a CPU: its Triton kernels run in Triton's interpreter.

Slow, but it is the runner that GPUs use. `VLLM_USE_V2_MODEL_RUNNER=1 pytest tests/vllm` runs any of these
tests on it. `install` must run before vLLM is imported: PyPI's Triton has no backend for CPUs, and without a
backend vLLM treats Triton as missing.
"""

from __future__ import annotations

import os
from types import SimpleNamespace


class _Driver:
    @staticmethod
    def is_active() -> bool:
        return True


def install() -> None:
    """Enables the interpreter, and adds a stand-in for Triton's missing backend."""
    os.environ["TRITON_INTERPRET"] = "1"
    from triton.backends import backends

    backends["cpu"] = SimpleNamespace(driver=_Driver, compiler=None)
