"""Tiny random models of every family, and a real tokenizer for them. Other test modules import from here.

    from tests.support.tiny_models import FAMILIES, tiny_model, tiny_tokenizer

``FAMILIES`` maps a name to a factory without arguments; ``tiny_model(name, **overrides)`` changes settings of
the configuration. Models are float32, on the CPU, in eval mode, and the same in every run. They are typed
``Any``: the type hints of transformers reject ordinary calls.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.support.odd_model import OddConfig, OddForCausalLM

VOCABULARY = 320
WIDTH = 32

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

THINKING_TEMPLATE = CHAT_TEMPLATE.replace(
    "<|im_start|>assistant\n{% endif %}",
    "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}",
)

_SENTENCES = (
    "The quick brown fox jumps over the lazy dog while the children watch from the window.",
    "How do I bake a loaf of bread at home, and which flour should I choose for it?",
    "Explain in a few words why the sky is blue during the day and red in the evening.",
    "Write a short story about a sailor who finds an old map in a bottle on the beach.",
)

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA = {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 256}
_GEMMA = {**_LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 16}
_MOE = {**_LLAMA, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}

# family: (name of the model class, settings beyond the common ones)
_RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", _LLAMA),
    "mistral": ("MistralForCausalLM", {**_LLAMA, "num_hidden_layers": 6, "sliding_window": 16}),
    "qwen2": ("Qwen2ForCausalLM", _LLAMA),
    "qwen3": ("Qwen3ForCausalLM", {**_LLAMA, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", _GEMMA),
    "gemma3": ("Gemma3ForCausalLM", {**_GEMMA, "num_hidden_layers": 6}),
    "phi3": ("Phi3ForCausalLM", _LLAMA),
    "gpt2": ("GPT2LMHeadModel", {"n_positions": 256}),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {"num_hidden_layers": 6, "intermediate_size": 64, "max_position_embeddings": 256},
    ),
    # As in OPT-350m, the embeddings are narrower than the residual stream.
    "opt": (
        "OPTForCausalLM",
        {
            "ffn_dim": 64,
            "word_embed_proj_dim": 16,
            "do_layer_norm_before": False,
            "max_position_embeddings": 256,
        },
    ),
    "falcon_new": (
        "FalconForCausalLM",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "alibi": False},
    ),
    "falcon_old": (
        "FalconForCausalLM",
        {"new_decoder_architecture": False, "multi_query": True, "alibi": False},
    ),
    "bloom": ("BloomForCausalLM", {"num_hidden_layers": 6}),
    "mpt": ("MptForCausalLM", {"max_seq_len": 256}),
    "mixtral": ("MixtralForCausalLM", {**_LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {**_MOE, "shared_expert_intermediate_size": 32}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**_MOE, "head_dim": 8}),
    "olmo": ("OlmoForCausalLM", _LLAMA),
    "olmo2": ("Olmo2ForCausalLM", _LLAMA),
    "stablelm": ("StableLmForCausalLM", _LLAMA),
    "gptj": ("GPTJForCausalLM", {"n_positions": 256, "rotary_dim": 4}),
}


def tiny_model(family: str = "llama", *, seed: int = 0, **overrides: Any) -> Any:
    """A tiny random model of ``family``; ``overrides`` are settings of its configuration."""
    # The caller's random state is left alone: a test that draws numbers gets the same ones either way.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if family in ("odd_h", "odd_layers"):
            model: Any = OddForCausalLM(
                OddConfig(**{**_COMMON, "layout": family.removeprefix("odd_"), **overrides})
            )
        else:
            name, settings = _RECIPES[family]
            model_class = getattr(transformers, name)
            config_class = model_class.config_class
            config = config_class(**_renamed(config_class, {**_COMMON, **settings, **overrides}))
            model = model_class(config)
    return model.eval()


def _renamed(config_class: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings under the names that the configuration class itself uses (n_embd for hidden_size ...)."""
    return {config_class.attribute_map.get(name, name): value for name, value in settings.items()}


FAMILIES: dict[str, Callable[[], Any]] = {
    name: partial(tiny_model, name) for name in (*_RECIPES, "odd_h", "odd_layers")
}


def tiny_tokenizer() -> Any:
    """A byte-level BPE tokenizer of 320 tokens with a ChatML template; it can write any text.

    ``<pad>`` is 0, ``<|im_start|>`` is 1 and ``<|im_end|>``, the end of a turn and of a text, is 2.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES, trainer)
    tokenizer_class: Any = PreTrainedTokenizerFast
    return tokenizer_class(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<pad>",
        padding_side="left",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
