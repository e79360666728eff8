"""Counts how often the package moves a value of a tensor to the host, pass by pass of a model."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import inferaligner

_SOURCES = str(Path(inferaligner.__file__).parent)
_READS = (
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
    "item",
    "cpu",
    "tolist",
    "numpy",
    "nonzero",
    "__len__",
)


@dataclass
class HostReads:
    """`passes` counts the passes of the model; `reads` counts reads by (number of the pass, method)."""

    passes: int = 0
    reads: Counter[tuple[int, str]] = field(default_factory=Counter)


@contextmanager
def count_host_reads(first_module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> Iterator[HostReads]:
    """Counts reads that the package's own code makes; `first_module` runs first in every pass."""
    counted = HostReads()

    def begin_pass(module: object, inputs: object) -> None:
        counted.passes += 1

    def watched(name: str) -> Any:
        original = getattr(Tensor, name)

        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if name != "__len__" and sys._getframe(1).f_code.co_filename.startswith(_SOURCES):
                counted.reads[counted.passes, name] += 1
            return original(self, *args, **kwargs)

        return method

    handle = first_module.register_forward_pre_hook(begin_pass)
    try:
        with monkeypatch.context() as patch:
            for name in _READS:
                patch.setattr(Tensor, name, watched(name))
            yield counted
    finally:
        handle.remove()
