"""What a sibling learns from, as tokens: refusals to harmful prompts, own answers to the others."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inferaligner.prompts.contrast import ContrastSet
from reproduction.sibling.prompts import Asked, encode


@dataclass(frozen=True)
class Row:
    """Token ids of a conversation and of its answer, the end token included where the answer ends."""

    asked: list[int]
    answer: list[int]
    harmful: bool

    @property
    def length(self) -> int:
        """Tokens in all."""
        return len(self.asked) + len(self.answer)


def refusal_rows(
    tokenizer: Any, asked: Sequence[Asked], contrast: ContrastSet, *, named: float, longest: int, seed: int
) -> list[Row]:
    """Each harmful conversation with a refusal written for it.

    `named` is the share of refusals that name what is asked for; the others fit the category, the frame or
    the conversation. Prompts of more than `longest` tokens are left out.
    """
    draw, known = random.Random(seed), contrast.refusals()
    harmful = [one for one in asked if one.harmful]
    rows = []
    for one, ids in zip(harmful, encode(tokenizer, harmful), strict=True):
        prompt = one.prompt
        general = known.get(prompt.category, ()) + known["general"]
        if one.source == "wrapped" and prompt.attack:
            general = known["frame"]
        elif one.source == "conversation":
            general = known["conversation"]
        text = draw.choice(contrast.refusals_to(prompt) if draw.random() < named else general)
        said = tokenizer(text, add_special_tokens=False)["input_ids"]
        if len(ids) <= longest:
            rows.append(Row(ids, [*said, tokenizer.eos_token_id], True))
    return rows


def own_rows(
    tokenizer: Any, asked: Sequence[Asked], answers: Mapping[str, list[int]], *, longest: int
) -> list[Row]:
    """Each harmless conversation with the target's own answer."""
    harmless = [one for one in asked if not one.harmful]
    encoded = encode(tokenizer, harmless)
    return [
        Row(ids, answers[one.key], False)
        for one, ids in zip(harmless, encoded, strict=True)
        if len(ids) <= longest and answers[one.key]
    ]


def collate(rows: Sequence[Row], padding: int) -> dict[str, Tensor]:
    """Right-padded `input_ids` and `attention_mask`, `answer` (bool: part of the answer) `[rows, tokens]`,
    and `harmful` `[rows]`."""
    longest = max(row.length for row in rows)
    ids = torch.full((len(rows), longest), padding)
    mask, answer = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for at, row in enumerate(rows):
        ids[at, : row.length] = torch.tensor(row.asked + row.answer)
        mask[at, : row.length] = 1
        answer[at, len(row.asked) : row.length] = True
    harmful = torch.tensor([row.harmful for row in rows])
    return {"input_ids": ids, "attention_mask": mask, "answer": answer, "harmful": harmful}
