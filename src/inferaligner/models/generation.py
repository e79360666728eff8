"""Answers to many prompts, in batches of prompts of similar length.

This is a loop around the model's own `generate`, so hooks on the model (a guard's, for example) act as in any
other call. Rows that have ended leave their batch (`shrinking_batch`) where decoding is plain and greedy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from inferaligner.method.decision import Decision
from inferaligner.models.shrinking_batch import ShrinkingBatch, can_shrink
from inferaligner.prompts.chat import context_length, encode_chats, tokens_after_answer
from inferaligner.prompts.encoding import Reader, has_pictures, seen_inputs, tokenizer_of
from inferaligner.prompts.images import Prompt

DecisionsOf = Callable[[], list[Decision]]

# Padded prompt tokens per batch. Decoding is bound by memory traffic, so wide batches are faster.
TOKENS_PER_BATCH = 8192


@dataclass(frozen=True)
class Answer:
    """One generated answer.

    Attributes:
        row: The prompt's index in the caller's list.
        text: The answer without special tokens.
        tokens: Its token ids, up to and including the end token.
        decision: The gate's decision about the prompt, if the caller passed `decisions`.
        ended: Whether the model ended the answer itself; otherwise the length limit cut it off.
    """

    row: int
    text: str
    tokens: tuple[int, ...]
    decision: Decision | None = None
    ended: bool = False


@dataclass(frozen=True)
class AnswerBatch:
    """The result of one `generate` call: new tokens `[answers, new]`, and the prompts' indices in order."""

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
    shrink: bool = True,
    in_step_with: Sequence[int] | None = None,
    **options: object,
) -> Iterator[Answer]:
    """Yields one answer per prompt, not in the order of the prompts: `row` is the prompt's index.

    Args:
        model: The model, with or without a guard on it.
        reader: The tokenizer, or the processor of a vision-language model if prompts have pictures.
        prompts: The prompts.
        max_new_tokens: The largest number of tokens of an answer.
        batch_size: The largest number of prompts per `generate` call.
        system: A system prompt that goes before each prompt.
        decisions: Returns the gate's decisions of the last `generate` call, as a guard's `decisions` does.
        shrink: Drop rows that have ended from their batch. Off: every row is computed until the last one has
            ended, in passes of the same size.
        in_step_with: Tokens of each prompt's answer in an earlier run over the same prompts with the same
            settings. This run then drops rows where that one did, so that an answer that is the same in both
            is computed in passes of the same sizes: bit for bit the same, as without dropping.
        options: Passed to `generate`; no row is dropped then. Without them decoding is greedy;
            `num_return_sequences` yields that many answers per prompt.

    Raises:
        PromptTooLongError: A prompt does not fit into the model's context; raised before any answer.

    Example:
        with aligner.apply(model) as guard:
            for answer in generate_answers(model, tokenizer, prompts, decisions=lambda: guard.decisions):
                print(answer.row, answer.decision, answer.text)
    """
    ends, tokenizer = end_tokens(model, options), tokenizer_of(reader)
    for batch in generate_batches(
        model,
        reader,
        prompts,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        system=system,
        shrink=shrink,
        in_step_with=in_step_with,
        **options,
    ):
        rows = batch.rows
        decided = decisions() if decisions is not None else [None] * len(rows)
        # Beams repeat a prompt's decision; with several return sequences a prompt has several answers.
        beams, answers = len(decided) // len(rows), len(batch.tokens) // len(rows)
        for number, sequence in enumerate(batch.tokens):
            place = number // answers
            tokens = _until_end(sequence.tolist(), ends)
            text = str(tokenizer.decode(tokens, skip_special_tokens=True)).strip()
            ended = bool(tokens) and tokens[-1] in ends
            yield Answer(rows[place], text, tuple(tokens), decided[place * beams], ended)


def generate_batches(
    model: PreTrainedModel,
    reader: Reader,
    prompts: Sequence[Prompt],
    *,
    max_new_tokens: int = 256,
    batch_size: int = 32,
    system: str | None = None,
    shrink: bool = True,
    in_step_with: Sequence[int] | None = None,
    **options: object,
) -> Iterator[AnswerBatch]:
    """Yields the tokens of `generate_answers`, one batch per `generate` call, shortest prompts first.

    With `shrink=False` every pass of the model has all rows of the batch.
    """
    limit, tokenizer = context_length(model.config), tokenizer_of(reader)
    # A prompt leaves room for at least one answer token; the model's context may make answers shorter.
    encoded = encode_chats(reader, prompts, system=system, max_length=None if limit is None else limit - 1)
    lengths = [len(ids) for ids in encoded]
    order = sorted(range(len(encoded)), key=lengths.__getitem__)
    settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, **options}
    shrink = shrink and not options and can_shrink(model)
    start = 0
    while start < len(order):
        rows = _together(order[start : start + batch_size], lengths, max_new_tokens, limit)
        start += len(rows)
        batch = _padded(tokenizer, [encoded[row] for row in rows]).to(model.device)
        room = max_new_tokens if limit is None else min(max_new_tokens, limit - batch["input_ids"].shape[1])
        loop: dict[str, object] = {}
        if shrink and len(rows) > 1 and not any(has_pictures(encoded[row]) for row in rows):
            others = None if in_step_with is None else [in_step_with[row] for row in rows]
            loop = {"custom_generate": ShrinkingBatch(others)}
        with torch.no_grad():
            output = model.generate(  # type: ignore[operator]
                **batch, max_new_tokens=room, pad_token_id=tokenizer.pad_token_id, **settings, **loop
            )
        yield AnswerBatch(tuple(rows), output[:, batch["input_ids"].shape[1] :])


def _together(rows: list[int], lengths: Sequence[int], max_new_tokens: int, limit: int | None) -> list[int]:
    """The first of `rows` (sorted by length) that can share a batch.

    All rows of a batch get the number of new tokens that its longest prompt leaves in the context. So a
    prompt that leaves less than `max_new_tokens` shares a batch only with prompts of its own length.
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
    """The inputs of `generate` for one batch, padded on the left, with its pictures."""
    if any(map(has_pictures, batch)):
        return seen_inputs(batch, "left")
    return tokenizer.pad(
        {"input_ids": [list(ids) for ids in batch]}, padding_side="left", return_tensors="pt"
    )


def end_tokens(model: PreTrainedModel, options: Mapping[str, object] | None = None) -> list[int]:
    """The tokens that end an answer: those given to `generate`, or else the model's own."""
    end = (options or {}).get("eos_token_id", getattr(model.generation_config, "eos_token_id", None))
    return list(end) if isinstance(end, (list, tuple)) else [end] if isinstance(end, int) else []


def answer_end_token(model: PreTrainedModel, reader: Reader) -> int | None:
    """The token that ends an answer in the chat template; None for a model that has no such token.

    Of several end tokens it is the one after an assistant's turn (Llama 3: `<|eot_id|>`, not
    `<|end_of_text|>`).
    """
    ends = end_tokens(model)
    if not ends:
        return None
    written = tokens_after_answer(reader)
    return next((token for token in written if token in ends), ends[0])


def _until_end(tokens: list[int], ends: Sequence[int]) -> list[int]:
    """The tokens up to and including the first end token; the tokens after it are padding."""
    stop = next((at + 1 for at, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:stop]
