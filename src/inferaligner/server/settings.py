"""The operator's choices, fixed while the server runs. Clients can change none of them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from inferaligner.steering.refusal import REFUSAL, OnOpen


class ServerSettings(BaseModel):
    """How the embedded server gates, and how much it takes on.

    Attributes:
        model_name: what clients call the model.
        shadow: decide and report, never steer.
        on_open: steer an opened request, or answer it with `refusal`.
        monitor: read answers too, if the aligner has a monitor.
        prompts: `chat` takes prompts that end as the chat template ends them, and answers begun behind that
            where the aligner has a gate for them; `any` takes raw text too.
        allow_override: requests may set the strength, 0 included.
        max_rows: answers that are generated at the same time.
        max_queue: prompts that may wait; more get status 429.
        answer_tokens: of a chat request that sets no limit.
        cache_tokens: tokens that the KV cache may hold, padding counted.
        prefill_tokens: tokens of new prompts between two steps of the others; a longer prompt goes alone.
        max_body_bytes: of a request.
        playground: whether `/` shows the playground.
        allow_origins: origins of web pages that browsers let use this server (CORS); `*` is all of them.
        image_hosts: hosts that images may be fetched from, by https; without any, data URLs alone are taken.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model_name: str = "model"
    shadow: bool = False
    on_open: OnOpen = "steer"
    refusal: str = REFUSAL
    monitor: bool = True
    prompts: Literal["chat", "any"] = "chat"
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
