"""A fixed text as the answer to open rows, for aligners without steering vectors and for `on_open="refuse"`.

The logits of open rows are overwritten, token by token, so that every way of decoding (greedy, sampling,
beams, drafts) can only produce this text. The batch stays whole, so closed rows keep their bits, and the call
stays the user's own. Nothing of an open row's answer comes from the model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from inferaligner.errors import InputError, SteeringError
from inferaligner.steering.prompt_spans import generate_setting


@dataclass(frozen=True)
class CannedRefusal:
    """The text that answers open rows, and its tokens without an end of turn."""

    text: str
    tokens: tuple[int, ...]

    @classmethod
    def of(cls, text: str, tokenizer: PreTrainedTokenizerBase) -> CannedRefusal:
        """Encodes a text. Raises `InputError` if it is empty, or if its tokens decode to another text."""
        wanted = text.strip()
        if not wanted:
            raise InputError("The refusal is empty; expected the text that open prompts are answered with.")
        tokens = tokenizer(wanted, add_special_tokens=False)["input_ids"]
        decoded = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
        if decoded != wanted:
            raise InputError(
                f"The tokenizer writes the refusal {wanted!r} as {decoded!r}. Give one without special "
                "tokens, in characters that the model knows."
            )
        return cls(wanted, tuple(tokens))


def refusing(
    arguments: dict[str, Any],
    defaults: object,
    refusal: CannedRefusal,
    opened: Callable[[], Tensor | None],
) -> LogitsProcessorList:
    """The logits processors of a `generate` call, with the one that writes the refusal as the last.

    Args:
        arguments: the call's arguments by name.
        defaults: the model's generation configuration.
        refusal: what open rows are answered with.
        opened: returns the open rows `[rows]` (bool), or None before the model has seen the prompt.

    Raises:
        SteeringError: the model has no end-of-text token.
    """
    ends = generate_setting(arguments, defaults, "eos_token_id")
    end = ends[0] if isinstance(ends, (list, tuple)) and ends else ends
    if isinstance(end, Tensor):
        end = int(end.flatten()[0])
    if not isinstance(end, int):
        raise SteeringError(
            "The model has no end-of-text token, so a refusal would not end. Give eos_token_id to generate()."
        )
    own = arguments.get("logits_processor") or []
    return LogitsProcessorList([*own, _Overwrite((*refusal.tokens, end), opened)])


class _Overwrite(LogitsProcessor):
    """Leaves an open row one possible next token."""

    follows_rows = True  # the guard knows which rows are in the batch (models/batch_processors.py)

    def __init__(self, tokens: tuple[int, ...], opened: Callable[[], Tensor | None]) -> None:
        self._tokens = tokens
        self._opened = opened
        self._prompt_tokens: int | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        opened = self._opened()
        if opened is None:  # an assistant drafts before the model itself has run; its drafts are checked here
            return scores
        if self._prompt_tokens is None:
            self._prompt_tokens = input_ids.shape[1]
        at = min(input_ids.shape[1] - self._prompt_tokens, len(self._tokens) - 1)
        only = torch.full_like(scores[:1], -torch.inf)
        only[:, self._tokens[at]] = 0
        rows = opened.to(scores.device)
        if len(scores) != len(rows):
            raise SteeringError(
                f"The gate decided on {len(rows)} rows, and {len(scores)} are generated; a refusal cannot be "
                "placed. Decode greedily, by sampling or with plain beams."
            )
        return torch.where(rows[:, None], only, scores)
