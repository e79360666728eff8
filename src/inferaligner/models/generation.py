"""Answers to many prompts: batched, sorted by length, in the caller's order, yielded as they are done.

This is a loop around the model's own `generate`; whatever hooks are on the model act as they would for
any other caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inferaligner.method.decision import Decision
from inferaligner.prompts.chat import context_length, encode_chats
from inferaligner.prompts.encoding import Reader, has_pictures, seen_inputs, tokenizer_of
from inferaligner.prompts.images import Prompt

DecisionsOf = Callable[[], list[Decision]]

# Padded prompt tokens per batch; decoding is bound by memory traffic, so wide batches pay off.
TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class Answer:
    """One generated answer; `row` is the prompt's index in the caller's list.

    `ended` says whether the model ended the answer itself; otherwise the length limit cut it off.
    """

    row: int
    text: str
    tokens: tuple[int, ...]
    decision: Decision | None = None
    ended: bool = False


@dataclass(frozen=True)
class AnswerBatch:
    """What one `generate` call returned: new tokens `[answers, new]`, and the prompts' indices in order."""

    rows: tuple[int, ...]
    tokens: Tensor


def generate_answers(
    model: PreTrainedModel,
    reader: Reader,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    system: str | None = None,
    decisions: DecisionsOf | None = None,
    **options: object,
) -> Iterator[Answer]:
    """Yields one answer per prompt, batch by batch (so not in order; sort by `row` where that matters).

    `reader` is the tokenizer, or the processor of a vision-language model where prompts have pictures.

    Greedy unless `options` (passed to `generate`) say otherwise; `num_return_sequences` yields as many per
    prompt. With `decisions` (a guard's), each answer carries the gate's decision. Raises
    `PromptTooLongError` before any work is done.
    """
    ends, tokenizer = end_tokens(model, options), tokenizer_of(reader)
    for batch in generate_batches(
        model,
        reader,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        system=system,
        **options,
    ):
        rows = batch.rows
        verdicts = decisions() if decisions is not None else [None] * len(rows)
        # Beams repeat a prompt's decision; several return sequences make several answers of it.
        beams, answers = len(verdicts) // len(rows), len(batch.tokens) // len(rows)
        for number, sequence in enumerate(batch.tokens):
            place = number // answers
            tokens = _until_end(sequence.tolist(), ends)
            text = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
            ended = bool(tokens) and tokens[-1] in ends
            yield Answer(rows[place], text, tuple(tokens), verdicts[place * beams], ended)


def generate_batches(
    model: PreTrainedModel,
    reader: Reader,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    system: str | None = None,
    **options: object,
) -> Iterator[AnswerBatch]:
    """The same without the text: one batch per `generate` call, shortest prompts first."""
    limit, tokenizer = context_length(model.config), tokenizer_of(reader)
    # Room for at least one answer token; a shorter answer than asked for is the model's own limit.
    encoded = encode_chats(reader, prompts, system=system, max_length=None if limit is None else limit - 1)
    lengths = [len(ids) for ids in encoded]
    order = sorted(range(len(encoded)), key=lengths.__getitem__)
    settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **options}
    start = 0
    while start < len(order):
        rows = _together(order[start : start + batch_size], lengths, max_new_tokens, limit)
        start += len(rows)
        batch = _padded(tokenizer, [encoded[row] for row in rows]).to(model.device)
        room = max_new_tokens if limit is None else min(max_new_tokens, limit - batch["input_ids"].shape[1])
        with torch.no_grad():
            output = model.generate(  # type: ignore[operator]
                **batch, max_new_tokens=room, pad_token_id=tokenizer.pad_token_id, **settings
            )
        yield AnswerBatch(tuple(rows), output[:, batch["input_ids"].shape[1] :])


def _together(rows: list[int], lengths: Sequence[int], max_new_tokens: int, limit: int | None) -> list[int]:
    """The first of `rows` (sorted by length) that can share a batch.

    All rows of a batch get as many new tokens as its longest prompt leaves of the context. So a prompt with
    less room than `max_new_tokens` shares a batch only with prompts of its own length.
    """
    shortest = lengths[rows[0]]
    longest = lengths[rows[-1]]
    if limit is not None:
        longest = max(limit - max_new_tokens, shortest)
    rows = [row for row in rows if lengths[row] <= longest]
    while len(rows) > 1 and lengths[rows[-1]] * len(rows) > TOKENS_PER_BATCH:
        rows = rows[:-1]
    return rows


def _padded(tokenizer: Any, batch: Sequence[list[int]]) -> Any:
    """The inputs of `generate` for one batch, padded on the left; pictures go where their rows are."""
    if any(map(has_pictures, batch)):
        return seen_inputs(batch, "left")
    return tokenizer.pad(
        {"input_ids": [list(ids) for ids in batch]}, padding_side="left", return_tensors="pt"
    )


def end_tokens(model: PreTrainedModel, options: Mapping[str, object] | None = None) -> list[int]:
    """The tokens that end an answer: as given to `generate`, else the model's own."""
    end = (options or {}).get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
    return list(end) if isinstance(end, (list, tuple)) else [end] if isinstance(end, int) else []


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """Up to the first end-of-text token, which stays; what follows only pads the row to its batch."""
    stop = next((at + 1 for at, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]
