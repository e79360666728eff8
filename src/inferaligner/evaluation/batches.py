"""Batches of prompts, formed by lengths alone, so that a continued run forms the same batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from inferaligner.models.anatomy import dissect
from inferaligner.models.generation import TOKENS_PER_BATCH

_ROWS_ON_CPU = 64  # beyond that, the cache of keys and values takes as much memory traffic as the weights
_MOST_ROWS = 256
_SHARE_OF_FREE_MEMORY = 0.5


def batch_size_for(model: PreTrainedModel, tokens_per_row: int) -> int:
    """Rows of `tokens_per_row` tokens per batch: by the GPU's free memory, or a fixed number on a CPU."""
    if model.device.type != "cuda":
        return _ROWS_ON_CPU
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * dissect(model).depth * heads * head * model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(model.device)
    rows = int(_SHARE_OF_FREE_MEMORY * free / (per_token * tokens_per_row))
    return max(1, min(_MOST_ROWS, 1 << (max(rows, 1).bit_length() - 1)))


def plan_batches(lengths: Sequence[int], rows: Sequence[int], batch_size: int) -> list[list[int]]:
    """Sorts rows by length and cuts them into batches.

    Args:
        lengths: prompt tokens of each row, `lengths[i]` of `rows[i]`.
        rows: row numbers, as the batches will hold them.
        batch_size: rows per batch at most; long prompts make smaller batches.
    """
    order = sorted(zip(lengths, rows, strict=True))
    batches: list[list[int]] = []
    for length, row in order:
        # Sorted, so that this row is the longest of the batch it joins.
        fits = (
            batches and len(batches[-1]) < batch_size and length * (len(batches[-1]) + 1) <= TOKENS_PER_BATCH
        )
        if fits:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
