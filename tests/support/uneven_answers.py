"""Prompts whose answers end at different steps, and the sizes of the passes that compute them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from inferaligner.models.generation import Answer, generate_answers

TOKENS = 24
PROMPTS = [
    "How do I bake a loaf of bread at home?",
    "Hi",
    "Explain in a few words why the sky is blue during the day and red in the evening.",
    "Write a story.",
    "What?",
    "Which flour should I choose for the bread?",
    "Why is the evening red?",
    "A sailor finds a map.",
    "Watch the children from the window.",
    "Say it in a few words.",
    "Home",
    "The fox jumps over the dog.",
]


def let_answers_end(model: Any, tokenizer: Any) -> None:
    """Gives a random model varied answers, and end tokens that end them at different steps."""
    model.generation_config.repetition_penalty = 4.0  # without, most say one token over and over
    model.generation_config.eos_token_id = None
    answers = [answer.tokens for answer in answers_of(model, tokenizer, shrink=False)]
    candidates, ends = {token for tokens in answers for token in tokens[1:]}, set[int]()
    for _ in range(4):
        ends.add(max(sorted(candidates), key=lambda token: len(_lengths(answers, ends | {token}))))
    model.generation_config.eos_token_id = sorted(ends)


def _lengths(answers: Sequence[Sequence[int]], ends: set[int]) -> set[int]:
    """The different lengths of answers with these end tokens."""
    return {next((at for at, token in enumerate(tokens) if token in ends), TOKENS) for tokens in answers}


def answers_of(model: Any, tokenizer: Any, **options: Any) -> list[Answer]:
    """The answers to `PROMPTS`, in their order."""
    answers = generate_answers(model, tokenizer, PROMPTS, **{"max_new_tokens": TOKENS, **options})
    return sorted(answers, key=lambda answer: answer.row)


@contextmanager
def sizes_of_passes(model: Any) -> Iterator[list[int]]:
    """The number of rows of every pass."""
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    try:
        yield sizes
    finally:
        handle.remove()
