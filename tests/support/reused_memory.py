"""A compiler backend whose results do not outlive the next run, as those of a CUDA graph do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from inferaligner.steering.torch_compile import never_compiled


class ReusedMemory:
    """Runs graphs as they are; before the model's next run, everything that they returned is overwritten.

    What a graph was given and changed in place stays, as under CUDA graphs.
    """

    def __init__(self) -> None:
        self.overwritten = 0
        self._returned: list[Tensor] = []

    def __call__(self, graph: Any, example_inputs: list[Any]) -> Callable[..., list[Any]]:
        def run(*arguments: Any) -> list[Any]:
            given = {a.untyped_storage().data_ptr() for a in arguments if isinstance(a, Tensor)}
            results = []
            for result in graph.forward(*arguments):
                if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in given:
                    result = result.clone()
                    self._returned.append(result)
                results.append(result)
            return results

        return run

    @contextmanager
    def on(self, model: Any) -> Iterator[None]:
        """While this is open, every call of the model begins by overwriting."""
        handle = model.register_forward_pre_hook(never_compiled(lambda *_: self._overwrite()), prepend=True)
        try:
            yield
        finally:
            handle.remove()

    def _overwrite(self) -> None:
        for result in self._returned:
            if result.is_floating_point():
                result.fill_(float("nan"))
            elif result.dtype == torch.bool:
                result.logical_not_()
            else:
                result.fill_(-1)
        self.overwritten += len(self._returned)
        self._returned.clear()
