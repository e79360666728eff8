"""Attention of a decoding step on a CPU, for models whose query heads share keys and values.

If a batch has padding, transformers' `sdpa` attention below version 5.23 first copies every key and value for
each query head that reads it. For one new token per row, the copies cost several times the attention. This
module calls the same kernel on the cache without copies. In float32 the result has the same bits. In half
precision, where the kernel itself copies, the heads of a group are passed as if they were tokens; the result
may differ in the last digit, as it does for other batch sizes. transformers 5.23 and later do so themselves,
and this module changes nothing.
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
    """Within this context the model's attention makes no copies; yields False if it is left unchanged (not on
    a CPU, not `sdpa`, or a version of transformers that makes no copies)."""
    config = model.config
    parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    # The setting is changed, and restored, in every part of the configuration.
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
    """An attention function of transformers: `query[rows, heads, tokens, width]`, keys and values
    `[rows, groups, columns, width]`; returns `[rows, tokens, heads, width]`."""
    (rows, heads, tokens, width), groups = query.shape, key.shape[1]
    if (
        tokens != 1
        or heads == groups
        or attention_mask is None
        or attention_mask.shape[1] != 1
        or dropout
        or any(more.get(name) is not None for name in ("position_bias", "cache"))
    ):
        result: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **more
        )
        return result
    if query.dtype == torch.float32:
        out = scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=True
        )
    else:
        folded = query.reshape(rows, groups, heads // groups, width)
        out = scaled_dot_product_attention(folded, key, value, attn_mask=attention_mask, scale=scaling)
        out = out.reshape(rows, heads, 1, value.shape[-1])
    return out.transpose(1, 2).contiguous(), None
