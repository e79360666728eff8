"""Attention of a decoding step on a CPU, for models whose query heads share keys and values.

Where a batch has padding, transformers' `sdpa` attention below version 5.23 copies every key and value once
for each query head that reads it, before it attends: for one new token a row, the copies cost several times
the attention. Without them the same kernel reads the cache as it is. float32 gives the same bits; in half
precision, where the kernel copies by itself, the heads of a group go in as if they were tokens, which may
differ in the last digit, as other batch sizes do. From 5.23 on transformers does the latter by itself, and
nothing is changed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from packaging.version import Version
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "inferaligner_grouped"
COPIES = Version(transformers.__version__).release < (5, 23)
"""Whether transformers' own attention copies keys and values."""


@contextmanager
def grouped_attention(model: PreTrainedModel) -> Iterator[bool]:
    """Within it the model attends as above; True if it does: on a CPU, where transformers' `sdpa` copies."""
    config = model.config
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    # What is set is set on every part, and taken back on every part.
    before = {part._attn_implementation for part in (config, *parts) if part is not None}
    able = model.device.type == "cpu" and before == {"sdpa"} and type(model)._can_set_attn_implementation()
    if not (COPIES and able):
        yield False
        return
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    try:
        yield True
    finally:
        model.set_attn_implementation("sdpa")


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **more: Any,
) -> tuple[Tensor, None]:
    """`query[rows, heads, tokens, width]`, keys and values `[rows, groups, columns, width]`, as transformers
    calls it; `[rows, tokens, heads, width]` out."""
    (rows, heads, tokens, width), groups = query.shape, key.shape[1]
    if (
        tokens != 1
        or heads == groups
        or attention_mask is None
        or attention_mask.shape[1] != 1
        or dropout
        or any(more.get(name) is not None for name in ("position_bias", "cache"))
    ):
        found: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return found
    if query.dtype == torch.float32:
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
    else:
        folded = query.reshape(rows, groups, heads // groups, width)
        out = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
        out = out.reshape(rows, heads, 1, value.shape[-1])
    return out.transpose(1, 2).contiguous(), None
