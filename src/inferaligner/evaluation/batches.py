"""Which prompts are answered together: decided from lengths alone, so that a continued run does the same."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from inferaligner.models.anatomy import dissect
from inferaligner.models.generation import TOKENS_PER_BATCH

_ON_CPU = 64  # decoding is bound by memory traffic; beyond this the cache of keys and values is, too
_MOST = 256
_SHARE_OF_FREE_MEMORY = 0.5


def batch_size_for(model: PreTrainedModel, tokens_per_row: int) -> int:
    """How many rows of so many tokens fit: by the accelerator's free memory, or a fixed number on a CPU."""
    if model.device.type != "cuda":
        return _ON_CPU
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    per_token = 2 * dissect(model).depth * heads * head * model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info(model.device)
    rows = int(_SHARE_OF_FREE_MEMORY * free / (per_token * tokens_per_row))
    return max(1, min(_MOST, 1 << (max(rows, 1).bit_length() - 1)))


def plan_batches(lengths: Sequence[int], rows: Sequence[int], batch_size: int) -> list[list[int]]:
    """Rows sorted by length and cut into batches; `lengths[i]` belongs to `rows[i]`."""
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
