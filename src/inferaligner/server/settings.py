"""The operator's choices, fixed while the embedded server runs. Clients can change none of them."""

from __future__ import annotations

from pydantic import Field

from inferaligner.steering.gate_policy import GatePolicy


class ServerSettings(GatePolicy):
    """The gate's policy, and how much work the embedded server accepts.

    Attributes:
        model_name: the model's name in requests and answers.
        allow_override: requests may set the strength, 0 included.
        max_rows: answers that are generated at the same time.
        max_queue: prompts that may wait; further ones get status 429.
        answer_tokens: longest answer to a chat request that sets no limit.
        cache_tokens: tokens that the KV cache may hold, padding counted.
        prefill_tokens: tokens of new prompts between two decoding steps; a longer prompt is run alone.
        max_body_bytes: largest body of a request.
        playground: whether `/` shows the playground.
        allow_origins: origins of web pages that may use this server from a browser (CORS); `*` is all.
        image_hosts: hosts from which images may be fetched by https; without any, only data URLs are taken.
    """

    model_name: str = "model"
    allow_override: bool = False
    max_rows: int = Field(64, ge=1)
    max_queue: int = Field(512, ge=1)
    answer_tokens: int = Field(1_024, ge=1)
    cache_tokens: int = Field(131_072, ge=1)
    prefill_tokens: int = Field(2_048, ge=1)
    max_body_bytes: int = Field(4_000_000, ge=1)
    playground: bool = True
    allow_origins: tuple[str, ...] = ()
    image_hosts: tuple[str, ...] = ()
