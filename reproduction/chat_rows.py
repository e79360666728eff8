"""Rows of prompt and answer as tokens, the prompt exactly as `fit` and `evaluate` render it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inferaligner.errors import InputError
from inferaligner.prompts.chat import encode_chats, render_chat
from reproduction.corpora.corpus import Row

TokenRow = dict[str, list[int]]


def token_rows(tokenizer: Any, rows: Sequence[Row], max_length: int) -> list[TokenRow]:
    """Token ids of training rows.

    Args:
        tokenizer: The tokenizer, with a chat template.
        rows: Prompts and answers.
        max_length: The largest number of tokens of a row.

    Returns:
        `input_ids` and `completion_mask` (1 on the answer and its end of turn) of each row. Rows whose prompt
        leaves no room for an answer are left out; longer answers are cut and do not end the turn.

    Raises:
        InputError: The chat template renders a finished exchange otherwise than a prompt.
    """
    if not rows:
        return []
    encoded = []
    answers = tokenizer([_rendered_answer(tokenizer, row) for row in rows], add_special_tokens=False)[
        "input_ids"
    ]
    for asked, answer in zip(encode_chats(tokenizer, [row.prompt for row in rows]), answers, strict=True):
        room = max_length - len(asked)
        if room >= 1:
            ids = answer[:room]
            encoded.append({"input_ids": asked + ids, "completion_mask": [0] * len(asked) + [1] * len(ids)})
    return encoded


def _rendered_answer(tokenizer: Any, row: Row) -> str:
    """The answer as the template renders it, up to the end of its turn."""
    turns = [{"role": "user", "content": row.prompt}, {"role": "assistant", "content": row.answer}]
    whole = str(tokenizer.apply_chat_template(turns, tokenize=False))
    asked = render_chat(tokenizer, row.prompt)
    if not whole.startswith(asked):
        raise InputError(
            "The chat template renders the prompt of a finished exchange differently from a prompt alone, so "
            "the model would be trained on other prompts than it gets later. Set another template in the "
            "scale's file (chat_template)."
        )
    # Some templates write a line break after the end of the turn, after which nothing is generated.
    return whole[len(asked) :].rstrip("\n")
