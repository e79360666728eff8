"""Where each row's prompt ends, told from what the caller hands to the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from inferaligner.errors import SteeringError


def ends_of_generate(arguments: Mapping[str, Any], pad_token_id: object, eos_token_ids: object) -> Tensor:
    """Positions `[prompts]` of the last prompt tokens of a `generate(...)` call, before rows are repeated."""
    tokens = arguments.get("inputs_embeds")
    ids = arguments.get("inputs") if arguments.get("inputs") is not None else arguments.get("input_ids")
    mask = arguments.get("attention_mask")
    if tokens is None:
        tokens = ids
    if tokens is None:
        return torch.zeros(1, dtype=torch.long)  # generation from the beginning-of-text token alone
    if mask is None and ids is not None:
        mask = _mask_from_padding(ids, pad_token_id, eos_token_ids)
    return _ends(tokens.shape[0], tokens.shape[1], mask)


def ends_of_forward(tokens: Tensor, arguments: Mapping[str, Any], start: int) -> Tensor:
    """The same for a direct forward call whose first token stands at position `start`."""
    return _ends(tokens.shape[0], start + tokens.shape[1], arguments.get("attention_mask"))


def ends_from_lengths(
    lengths: Sequence[int], tokens: Tensor, arguments: Mapping[str, Any], start: int
) -> Tensor:
    """The same where the caller knows how many tokens of each row, padding not counted, are the prompt."""
    rows, width = tokens.shape[0], start + tokens.shape[1]
    if len(lengths) != rows:
        raise SteeringError(f"{len(lengths)} prompt lengths were given for {rows} rows.")
    mask = arguments.get("attention_mask")
    begins = torch.zeros(rows, dtype=torch.long)
    if isinstance(mask, Tensor) and mask.ndim == 2:
        begins = mask.long().argmax(dim=1).cpu()
    ends = begins + torch.tensor(lengths) - 1
    if int(ends.max()) >= width or min(lengths) < 1:
        raise SteeringError(f"Prompt lengths {list(lengths)} do not fit rows of {width} tokens.")
    return ends


def cached_tokens(cache: Any) -> int:
    """How many tokens a KV cache holds; waits for the device where the cache counts there."""
    if cache is None:
        return 0
    if hasattr(cache, "get_seq_length"):
        return int(cache.get_seq_length())
    if isinstance(cache, (tuple, list)):  # the older form: (keys, values) per layer
        return int(cache[0][0].shape[-2]) if cache and cache[0] is not None else 0
    raise SteeringError(
        f"Unknown KV cache {type(cache).__name__}: cannot tell where the prompt ends. "
        "Use one of the caches of transformers."
    )


def _ends(rows: int, width: int, mask: Any) -> Tensor:
    if isinstance(mask, Tensor) and mask.ndim == 2:
        width = mask.shape[1]  # covers cached tokens as well, when only new ones are passed
        last = width - 1 - mask.long().flip(1).argmax(dim=1)
        return last.cpu()
    return torch.full((rows,), width - 1, dtype=torch.long)


def _mask_from_padding(ids: Tensor, pad_token_id: object, eos_token_ids: object) -> Tensor | None:
    """What `generate` itself infers when no attention mask is given."""
    if ids.dtype not in (torch.long, torch.int) or not isinstance(pad_token_id, int):
        return None
    endings = eos_token_ids if isinstance(eos_token_ids, (list, tuple)) else [eos_token_ids]
    if pad_token_id in endings or not bool((ids == pad_token_id).any()):
        return None
    return (ids != pad_token_id).long()
