"""Batches made before the training step that needs them; by other processes if the model is on a GPU.

The batch of a step depends on its number alone, and not on the machine or on interruptions.
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
    """The results of `draw` for the steps from `first` to `steps`, in order.

    A CPU that trains has no free core, so each batch is drawn at its step there.
    """
    workers = 0 if device.type == "cpu" else min(_MOST, os.cpu_count() or 1)
    if workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or its threads warn about the forks
    batches: Iterator[Batch] = iter(
        DataLoader(
            _Steps(draw, first, steps),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            multiprocessing_context="fork" if workers else None,  # the draw function need not be pickled
        )
    )
    return batches
