"""The answer to a request whose gate opened, with `on_open="refuse"`: a fixed text, as tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.outputs import LogprobsLists

from inferaligner.errors import InputError
from inferaligner.steering.refusal import CannedRefusal
from inferaligner.vllm.settings import EngineSettings


def refusal_tokens(config: Any, settings: EngineSettings) -> list[int]:
    """The tokens that answer an open request, an end token included; none where open requests are steered.

    Args:
        config: the `VllmConfig`, for the tokenizer.
        settings: the operator's choices.

    Raises:
        InputError: the tokenizer is skipped, or cannot write the text.
    """
    if settings.refusal_text is None or settings.shadow:
        return []
    if config.model_config.skip_tokenizer_init:
        raise InputError(
            "--on-open refuse answers with a text, which needs the tokenizer. Leave out "
            "--skip-tokenizer-init."
        )
    tokenizer = cached_tokenizer_from_config(config.model_config)
    tokens = CannedRefusal.of(settings.refusal_text, tokenizer).tokens
    # vLLM leaves the last token of a stopped answer out of its text.
    return [*tokens, tokens[-1] if tokenizer.eos_token_id is None else tokenizer.eos_token_id]


def certain_logprobs(tokens: list[int], request: Any) -> LogprobsLists | None:
    """Log probabilities of a refusal's tokens, if the request wants any: 0, for no other was possible."""
    if request.sampling_params.logprobs is None:
        return None
    ids = np.array(tokens, dtype=np.int64)[:, None]
    return LogprobsLists(ids, np.zeros(ids.shape, dtype=np.float32), np.ones(len(tokens), dtype=np.int64))
