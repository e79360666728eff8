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
    """A prompt, the answer to learn, whether that answer is a refusal, and the weight of the row."""

    prompt: str
    answer: str
    harmful: bool
    weight: float = 1.0


def tokenize(tokenizer: Any, examples: Sequence[Example], answer_tokens: int) -> list[dict[str, Any]]:
    """One row per example: `input_ids`, their number of prompt tokens, the label and the weight."""
    rows = []
    for ids, example in zip(encode_chats(tokenizer, [e.prompt for e in examples]), examples, strict=True):
        answer = tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        # An answer that was cut by the length limit does not end the turn.
        cut = len(answer) >= answer_tokens - 2
        ended = answer[:answer_tokens] if cut else [*answer, tokenizer.eos_token_id]
        row = {"input_ids": ids + ended, "prompt_tokens": len(ids)}
        rows.append({**row, "harmful": example.harmful, "weight": example.weight})
    return rows


def collate(rows: Sequence[dict[str, Any]], padding: int) -> dict[str, Tensor]:
    """Right-padded `input_ids`, `attention_mask` `[rows, tokens]`; the rest is `[rows]`."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = [row["input_ids"] + [padding] * (longest - len(row["input_ids"])) for row in rows]
    lengths = torch.tensor([len(row["input_ids"]) for row in rows])
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        "prompt_tokens": torch.tensor([row["prompt_tokens"] for row in rows]),
        "harmful": torch.tensor([row["harmful"] for row in rows]),
        "weight": torch.tensor([row["weight"] for row in rows]),
    }


def answer_tokens(batch: dict[str, Tensor]) -> Tensor:
    """`[rows, tokens]` bool: every answer token."""
    columns = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    return (columns >= batch["prompt_tokens"][:, None]) & batch["attention_mask"].bool()


def deciding_tokens(batch: dict[str, Tensor]) -> Tensor:
    """`[rows, tokens]` bool: the last prompt token and every answer token."""
    columns = torch.arange(batch["input_ids"].shape[1], device=batch["input_ids"].device)
    return (columns >= batch["prompt_tokens"][:, None] - 1) & batch["attention_mask"].bool()
