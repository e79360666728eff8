"""A Llama written out in numpy, with the steering of the paper: what the golden tests compare with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class NumpyLlama:
    """One prompt at a time, float64, nothing cached."""

    def __init__(self, model: Any) -> None:
        self.weights = {name: tensor.double().cpu().numpy() for name, tensor in model.state_dict().items()}
        self.config = model.config

    def run(self, tokens: list[int], additions: Mapping[int, Array] | None = None, first: int = 0) -> Any:
        """Logits `[tokens, vocabulary]`, stream `[layers, tokens, width]`; vectors are added from `first`."""
        stream = self.weights["model.embed_tokens.weight"][tokens]
        streams = []
        for layer in range(self.config.num_hidden_layers):
            stream = stream + self.attention(
                layer, self.norm(stream, f"model.layers.{layer}.input_layernorm")
            )
            stream = stream + self.mlp(
                layer, self.norm(stream, f"model.layers.{layer}.post_attention_layernorm")
            )
            streams.append(stream)
            if additions is not None and layer in additions:
                stream = stream.copy()
                stream[first:] += additions[layer]
        return self.norm(stream, "model.norm") @ self.weights["lm_head.weight"].T, np.stack(streams)

    def norm(self, stream: Array, name: str) -> Array:
        scale = np.sqrt((stream**2).mean(-1, keepdims=True) + self.config.rms_norm_eps)
        return stream / scale * self.weights[f"{name}.weight"]

    def mlp(self, layer: int, stream: Array) -> Array:
        up, gate, down = (
            self.weights[f"model.layers.{layer}.mlp.{n}_proj.weight"] for n in ("up", "gate", "down")
        )
        gated = stream @ gate.T
        return (gated / (1 + np.exp(-gated)) * (stream @ up.T)) @ down.T

    def attention(self, layer: int, stream: Array) -> Array:
        heads, groups = self.config.num_attention_heads, self.config.num_key_value_heads
        tokens, size = len(stream), stream.shape[1] // heads
        name = f"model.layers.{layer}.self_attn"
        query, key, value = (
            (stream @ self.weights[f"{name}.{n}_proj.weight"].T).reshape(tokens, -1, size) for n in "qkv"
        )
        query, key = self.rotate(query), self.rotate(key)
        causal = np.tril(np.ones((tokens, tokens), dtype=bool))
        mixed = np.empty((tokens, heads, size))
        for head in range(heads):
            group = head // (heads // groups)
            logits = np.where(causal, query[:, head] @ key[:, group].T / np.sqrt(size), -np.inf)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            mixed[:, head] = weights / weights.sum(-1, keepdims=True) @ value[:, group]
        return mixed.reshape(tokens, -1) @ self.weights[f"{name}.o_proj.weight"].T

    def rotate(self, vectors: Array) -> Array:
        tokens, _, size = vectors.shape
        theta = self.config.rope_parameters["rope_theta"]
        angles = np.outer(np.arange(tokens), theta ** -(np.arange(0, size, 2) / size))
        cosine, sine = (np.concatenate([f(angles)] * 2, axis=1)[:, None] for f in (np.cos, np.sin))
        half = size // 2
        return vectors * cosine + np.concatenate([-vectors[..., half:], vectors[..., :half]], axis=-1) * sine
