"""Prompt and answer pairs as padded batches, for training on answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inferaligner.prompts.chat import encode_chats


@dataclass(frozen=True)
class Example:
    """A prompt and the answer to learn."""

    prompt: str
    answer: str


def tokenize(tokenizer: Any, examples: Sequence[Example], answer_tokens: int) -> list[dict[str, Any]]:
    """One row per example: `input_ids`, and the number of prompt tokens in them."""
    rows = []
    for ids, example in zip(encode_chats(tokenizer, [e.prompt for e in examples]), examples, strict=True):
        answer = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        # An answer that was cut by the length limit does not end the turn.
        cut = len(answer) >= answer_tokens - 2
        ended = answer[:answer_tokens] if cut else [*answer, tokenizer.eos_token_id]
        rows.append({"input_ids": ids + ended, "prompt_tokens": len(ids)})
    return rows


def collate(rows: Sequence[dict[str, Any]], padding: int) -> dict[str, Tensor]:
    """Right-padded `input_ids` and `attention_mask` `[rows, tokens]`, and `prompt_tokens` `[rows]`."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [padding] * (longest - len(row["input_ids"])) for row in rows]
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        "prompt_tokens": torch.tensor([row["prompt_tokens"] for row in rows]),
    }


def answer_tokens(batch: dict[str, Tensor]) -> Tensor:
    """`[rows, tokens]` bool: every answer token."""
    columns = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    return (columns >= batch["prompt_tokens"][:, None]) & batch["attention_mask"].bool()
