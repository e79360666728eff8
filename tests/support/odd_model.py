"""A causal language model that transformers has never heard of, as remote code would define it.

The layers of ``layout="h"`` hang at ``transformer.h`` and return tuples; those of ``layout="layers"`` hang at
``model.layers`` and return tensors. There is no KV cache, so ``generate`` recomputes the prompt for every
token.
"""

from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput


class OddConfig(PreTrainedConfig):
    model_type = "odd_lm"

    def __init__(
        self,
        vocab_size: int = 320,
        hidden_size: int = 32,
        num_hidden_layers: int = 4,
        num_attention_heads: int = 4,
        layout: str = "h",
        **kwargs: Any,
    ):
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.layout = layout
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)


class OddBlock(nn.Module):
    def __init__(self, config: OddConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.norm = nn.LayerNorm(config.hidden_size)
        self.mix = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)
        self.mlp = nn.Sequential(
            nn.LayerNorm(config.hidden_size),
            nn.Linear(config.hidden_size, 64),
            nn.GELU(),
            nn.Linear(64, config.hidden_size),
        )
        self.as_tuple = config.layout == "h"

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> Any:
        rows, tokens, width = hidden.shape
        query, key, value = (
            part.reshape(rows, tokens, self.heads, -1).transpose(1, 2)
            for part in self.mix(self.norm(hidden)).chunk(3, dim=-1)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(rows, tokens, width))
        hidden = hidden + self.mlp(hidden)
        return (hidden, None) if self.as_tuple else hidden


class OddBody(nn.Module):
    def __init__(self, config: OddConfig):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        blocks = nn.ModuleList(OddBlock(config) for _ in range(config.num_hidden_layers))
        setattr(self, "h" if config.layout == "h" else "layers", blocks)
        # As many norms as layers: a list that must not be taken for the decoder.
        self.side_norms = nn.ModuleList(nn.LayerNorm(config.hidden_size) for _ in blocks)
        self.final = nn.LayerNorm(config.hidden_size)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool = False,
        **_: Any,
    ) -> BaseModelOutput:
        tokens = input_ids.shape[1]
        mask = torch.ones(tokens, tokens, dtype=torch.bool, device=input_ids.device).tril()[None, None]
        if attention_mask is not None:
            # A padding token may attend to itself, or its softmax would be over nothing.
            seen = attention_mask.bool()[:, None, None, :]
            mask = (mask & seen) | torch.eye(tokens, dtype=torch.bool, device=input_ids.device)
        hidden = self.embed(input_ids)
        states = [hidden]
        blocks: Any = self.h if hasattr(self, "h") else self.layers
        for block in blocks:
            output = block(hidden, mask)
            hidden = output[0] if isinstance(output, tuple) else output
            states.append(hidden)
        hidden = self.final(hidden)
        states[-1] = hidden
        return BaseModelOutput(
            last_hidden_state=hidden, hidden_states=tuple(states) if output_hidden_states else None
        )


class OddForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = OddConfig
    base_model_prefix = "nothing_of_that_name"

    def __init__(self, config: OddConfig):
        super().__init__(config)
        self.part = "transformer" if config.layout == "h" else "model"
        setattr(self, self.part, OddBody(config))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> Any:
        return getattr(self, self.part).embed

    def get_output_embeddings(self) -> Any:
        return self.lm_head

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, attention_mask: Any = None, **_: Any
    ) -> Any:
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> CausalLMOutput:
        out = getattr(self, self.part)(
            input_ids, attention_mask, output_hidden_states=bool(output_hidden_states)
        )
        return CausalLMOutput(logits=self.lm_head(out.last_hidden_state), hidden_states=out.hidden_states)
