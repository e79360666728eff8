"""The properties that a model and a tokenizer must share with the ones that an aligner was fitted on.

A model's fingerprint comes from its configuration, so it is the same in every number format, quantised, on
any device and under a PEFT adapter: equal fingerprints mean that vectors *fit*, not that weights are equal. A
tokenizer's fingerprint comes from its vocabulary and its chat template, which decide the last token of a
prompt.
"""

from __future__ import annotations

import functools
import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict
from torch import nn

from inferaligner.errors import InputError
from inferaligner.models.unwrap import depth_of, text_config, unwrap, width_of
from inferaligner.prompts.encoding import template_of, tokenizer_of

# The settings that decide the shapes of a decoder's weights. A name that a configuration lacks counts as
# absent; the order and the names are part of the fingerprint's definition.
_SHAPE_FIELDS = (
    "vocab_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_kv_heads",
    "multi_query",
    "new_decoder_architecture",
    "head_dim",
    "intermediate_size",
    "ffn_hidden_size",
    "ffn_dim",
    "n_inner",
    "expansion_ratio",
    "word_embed_proj_dim",
    "num_local_experts",
    "num_experts",
    "n_routed_experts",
    "n_shared_experts",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
    "linear_num_key_heads",
    "linear_num_value_heads",
    "linear_key_head_dim",
    "linear_value_head_dim",
    "layer_types",
    "max_position_embeddings",
)
_LEARNED_POSITIONS = ("gpt2", "opt", "gpt_neo", "gpt_bigcode")

# Parts of a serialised tokenizer that change while it is in use, without changing its tokens.
_VOLATILE = ("version", "padding", "truncation")

# Not the pad token: it is masked out everywhere, and every loader sets its own.
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "mask_token")


class _Fingerprint(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class ModelFingerprint(_Fingerprint):
    """The properties that two models must share for vectors of one to fit the other.

    Attributes:
        architecture: Class name of the model.
        model_type: ``model_type`` of its text configuration.
        width: Size of the residual stream.
        depth: Number of decoder layers.
        vocab_size: Rows of the embedding.
        heads: Attention heads per layer; 0 if the configuration lacks the number.
        shapes_sha256: Digest of all settings that decide the decoder's weight shapes.
    """

    architecture: str
    model_type: str
    width: int
    depth: int
    vocab_size: int
    heads: int
    shapes_sha256: str


class TokenizerFingerprint(_Fingerprint):
    """The properties that two tokenizers must share for a prompt to become the same tokens.

    Attributes:
        vocabulary_sha256: Digest of vocabulary, merges, normaliser and pre-tokeniser.
        chat_template_sha256: Digest of the chat template; None without one.
        special_tokens: Id of each special token that is set, by name (``bos_token`` ...).
    """

    vocabulary_sha256: str
    chat_template_sha256: str | None
    special_tokens: dict[str, int]


def fingerprint_model(model: nn.Module) -> ModelFingerprint:
    """The fingerprint of a model, with or without wrappers.

    Raises:
        UnknownArchitectureError: Its configuration does not give depth and width.
    """
    inner = unwrap(model)
    return fingerprint_config(text_config(inner), type(inner).__name__)


def fingerprint_config(config: Any, architecture: str) -> ModelFingerprint:
    """The fingerprint of the model with this text configuration and the class name `architecture`."""
    depth, width = depth_of(config) or 0, width_of(config) or 0
    shapes: dict[str, Any] = {"depth": depth, "width": width}
    for name in _SHAPE_FIELDS:
        # The context length changes the weights only if positions are learned.
        if name == "max_position_embeddings" and config.model_type not in _LEARNED_POSITIONS:
            continue
        value = getattr(config, name, None)
        if isinstance(value, (int, float, str, list, tuple)):
            shapes[name] = value
    return ModelFingerprint(
        architecture=architecture,
        model_type=str(getattr(config, "model_type", "")),
        width=width,
        depth=depth,
        vocab_size=int(getattr(config, "vocab_size", None) or 0),
        heads=int(getattr(config, "num_attention_heads", None) or 0),
        shapes_sha256=_digest(shapes),
    )


def fingerprint_tokenizer(reader: Any) -> TokenizerFingerprint:
    """The fingerprint of a tokenizer, or of a processor's tokenizer, with its current chat template."""
    tokenizer, template = tokenizer_of(reader), template_of(reader)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None and hasattr(backend, "to_str"):
        vocabulary = _vocabulary_digest(backend.to_str())
    else:  # a tokenizer written in Python: only its vocabulary can be compared
        vocabulary = _digest({"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()})
    special = {name: getattr(tokenizer, f"{name}_id", None) for name in _SPECIAL_TOKENS}
    return TokenizerFingerprint(
        vocabulary_sha256=vocabulary,
        chat_template_sha256=None if template is None else _digest(template),
        special_tokens={name: int(number) for name, number in special.items() if number is not None},
    )


_WORDS = {
    "architecture": "architecture",
    "model_type": "model type",
    "width": "width of the residual stream",
    "depth": "number of decoder layers",
    "vocab_size": "vocabulary size",
    "heads": "number of attention heads",
}


def differences(
    current: ModelFingerprint | TokenizerFingerprint, expected: ModelFingerprint | TokenizerFingerprint
) -> list[str]:
    """The differences between two fingerprints of the same kind, one clause each; empty if they are equal.

    Args:
        current: The fingerprint of the present model or tokenizer.
        expected: The fingerprint of the one that an aligner was fitted on.

    Raises:
        InputError: The fingerprints are of different kinds.
    """
    if isinstance(current, ModelFingerprint) and isinstance(expected, ModelFingerprint):
        return _model_differences(current, expected)
    if isinstance(current, TokenizerFingerprint) and isinstance(expected, TokenizerFingerprint):
        return _tokenizer_differences(current, expected)
    raise InputError(
        f"A {type(current).__name__} cannot be compared with a {type(expected).__name__}; expected two of "
        "one kind."
    )


def _model_differences(current: ModelFingerprint, expected: ModelFingerprint) -> list[str]:
    lines = [
        f"the {words} is {getattr(current, name)}, expected {getattr(expected, name)}"
        for name, words in _WORDS.items()
        if getattr(current, name) != getattr(expected, name)
    ]
    if not lines and current.shapes_sha256 != expected.shapes_sha256:
        lines.append(
            "the shapes of the decoder's weights differ (MLP size, key-value heads, experts or layer types)"
        )
    return lines


def _tokenizer_differences(current: TokenizerFingerprint, expected: TokenizerFingerprint) -> list[str]:
    lines = []
    if current.vocabulary_sha256 != expected.vocabulary_sha256:
        lines.append("the tokenizer splits text differently (its vocabulary, merges or normaliser differ)")
    if current.chat_template_sha256 != expected.chat_template_sha256:
        if current.chat_template_sha256 is None:
            lines.append("the tokenizer has no chat template, and one was used")
        elif expected.chat_template_sha256 is None:
            lines.append("the tokenizer has a chat template, and none was used")
        else:
            lines.append(
                "the chat template is another one (--chat-template FILE or NAME chooses the one of the fit)"
            )
    for name in sorted(current.special_tokens.keys() | expected.special_tokens.keys()):
        here, there = current.special_tokens.get(name), expected.special_tokens.get(name)
        if here != there:
            words = name.replace("_", " ")
            lines.append(
                f"the {words} is {'not set' if here is None else here}, "
                f"expected {'none' if there is None else there}"
            )
    return lines


@functools.lru_cache(maxsize=4)
def _vocabulary_digest(written: str) -> str:
    """Digest of a fast tokenizer's JSON; cached, because reading it takes half a second."""
    vocabulary = json.loads(written)
    for name in _VOLATILE:
        vocabulary.pop(name, None)
    return _digest(vocabulary)


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
