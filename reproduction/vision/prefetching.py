"""Batches drawn ahead of the training step that takes them, in other processes where the model is on a GPU.

What a step learns from depends on its number alone: neither the machine nor an interruption changes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

Batch = TypeVar("Batch")
_MOST = 6


class _Steps(Dataset[Batch], Generic[Batch]):
    def __init__(self, draw: Callable[[int], Batch], first: int, steps: int) -> None:
        self._draw, self._first, self._steps = draw, first, steps

    def __len__(self) -> int:
        return max(0, self._steps - self._first)

    def __getitem__(self, number: int) -> Batch:
        return self._draw(self._first + number)


def _as_it_is(batch: Batch) -> Batch:
    return batch


def prefetched(draw: Callable[[int], Batch], first: int, steps: int, device: torch.device) -> Iterator[Batch]:
    """What `draw` gives for the steps from `first` on, in order.

    A CPU that trains has no core to spare, so there each batch is drawn when it is asked for.
    """
    workers = 0 if device.type == "cpu" else min(_MOST, os.cpu_count() or 1)
    if workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or its threads warn about the forks
    found: Iterator[Batch] = iter(
        DataLoader(
            _Steps(draw, first, steps),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="fork" if workers else None,  # nothing has to be sent to them
        )
    )
    return found
