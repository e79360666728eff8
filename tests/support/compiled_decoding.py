"""Decoding that `generate` compiles, and the count of the graphs that `torch.compile` made."""

from __future__ import annotations

from typing import Any

from torch._dynamo.utils import counters
from transformers import CompileConfig


def compiled_decoding(backend: str = "eager") -> dict[str, Any]:
    """Options with which generate() compiles its decoding steps by itself, as it does on an accelerator."""
    config = CompileConfig(backend=backend, mode=None)  # type: ignore[arg-type]
    config._compile_all_devices = True
    return {"cache_implementation": "static", "compile_config": config}


def graphs() -> int:
    """The number of graphs compiled since `counters` was cleared."""
    return int(counters["stats"]["unique_graphs"])
