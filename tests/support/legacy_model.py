"""A model as remote code was written before transformers had cache classes: its KV cache is a tuple of
tuples, made anew in every pass, and its layers return their part of it beside the stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from tests.support.odd_model import OddBlock, OddConfig, OddForCausalLM

Past = tuple[tuple[torch.Tensor, torch.Tensor], ...]


class LegacyBlock(OddBlock):
    def forward(self, hidden: torch.Tensor, mask: torch.Tensor, past: Any = None) -> Any:
        rows, tokens, width = hidden.shape
        query, key, value = (
            part.reshape(rows, tokens, self.heads, -1).transpose(1, 2)
            for part in self.mix(self.norm(hidden)).chunk(3, dim=-1)
        )
        if past is not None:
            key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        return hidden + self.mlp(hidden), (key, value)


class LegacyForCausalLM(OddForCausalLM):
    def __init__(self, config: OddConfig):
        super().__init__(config)
        body: Any = self.transformer
        body.h = nn.ModuleList(LegacyBlock(config) for _ in range(config.num_hidden_layers))

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: Any = None,
        use_cache: bool = True,
        **_: Any,
    ) -> Any:
        if past_key_values is not None:
            input_ids = input_ids[:, -1:]
        return {
            "input_ids": input_ids,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": use_cache,
        }

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Past | None = None,
        use_cache: bool = False,
        **_: Any,
    ) -> CausalLMOutputWithPast:
        start = 0 if past_key_values is None else past_key_values[0][0].shape[2]
        total = start + input_ids.shape[1]
        mask = torch.ones(total, total, dtype=torch.bool).tril()[None, None]
        if attention_mask is not None:
            mask = (mask & attention_mask.bool()[:, None, None, :]) | torch.eye(total, dtype=torch.bool)
        body: Any = self.transformer
        hidden, made = body.embed(input_ids), []
        for number, block in enumerate(body.h):
            past = None if past_key_values is None else past_key_values[number]
            hidden, own = block(hidden, mask[:, :, start:], past)
            made.append(own)
        return CausalLMOutputWithPast(
            logits=self.lm_head(body.final(hidden)), past_key_values=tuple(made) if use_cache else None
        )
