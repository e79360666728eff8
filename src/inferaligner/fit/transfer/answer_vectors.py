"""Steering vectors in the target's space, learned from what the aligned model answers.

A model of another family has no activations that fit the target, and a map of them loses most of what makes
it decline. Its answers need no map: they are text. The vectors are those under which the target, steered from
the last prompt token on, finds the aligned model's refusals most likely. The target's weights stay as they
are; gradient descent changes a few hundred numbers, and held-out prompts stop it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inferaligner.errors import CalibrationError
from inferaligner.fit.strength.teacher_forcing import TeacherForcing
from inferaligner.method.activations import Advance

FEWEST = 8
"""Least number of the aligned model's refusals; from fewer, vectors learn their words, not how to decline."""

_BATCH = 16
STEPS = 100
"""The most steps of gradient descent."""

_RATE = 0.05  # of the stream's root mean square: how far Adam moves each component a step
_EVERY = 5  # steps between looks at the held-out prompts
_PATIENCE = 5  # looks without an improvement


@dataclass(frozen=True)
class AnswerVectors:
    """Vectors `[width]` float32 by layer, to be added as they are, and how likely they make the answers.

    Cross-entropies are in nats per token of held-out answers: of the bare target, with the vectors that the
    search began with, and with those it ended with.
    """

    vectors: Mapping[int, Tensor]
    bare: float
    start: float
    end: float
    steps: int

    def check(self, target: str, aligned: str) -> None:
        """Raises `CalibrationError` if the vectors do not make held-out answers likelier."""
        if not self.end < self.bare:
            raise CalibrationError(
                f"No vector makes {target} say what {aligned} answers: held-out cross-entropy "
                f"{self.end:.2f}, unsteered {self.bare:.2f} nats per token. Steer other layers "
                "(`steer_layers`), or give a sibling of the target."
            )


def answer_vectors(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    ended: Sequence[bool] | None = None,
    start: Mapping[int, Tensor],
    system: str | None = None,
    advance: Advance | None = None,
) -> AnswerVectors:
    """Learns one vector for each layer in `start`, beginning with the values in `start`.

    Args:
        prompts, answers: harmful prompts and the aligned model's refusals; every fourth is held out.
        ended: whether each answer is whole; the end token of a whole one is learned too.
        start: the first value `[width]` of each layer's vector, by layer; may be zeros.
        advance: called with 1 after every step, of `STEPS` at most.

    Raises:
        CalibrationError: fewer than `FEWEST` refusals.
    """
    if len(prompts) < FEWEST:
        raise CalibrationError(
            f"The aligned model declined {len(prompts)} prompts; at least {FEWEST} refusals are needed to "
            "learn from. Give a model that declines harmful requests with `aligned`."
        )
    rows = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))  # alike in length, little padding
    held = [row for number, row in enumerate(rows) if number % 4 == 3]
    kept = [row for number, row in enumerate(rows) if number % 4 != 3]

    def batches(chosen: Sequence[int]) -> list[TeacherForcing]:
        return [
            TeacherForcing(
                model,
                tokenizer,
                [prompts[row] for row in chosen[at : at + _BATCH]],
                [answers[row] for row in chosen[at : at + _BATCH]],
                ended=None if ended is None else [ended[row] for row in chosen[at : at + _BATCH]],
                system=system,
            )
            for at in range(0, len(chosen), _BATCH)
        ]

    frozen = {parameter: parameter.requires_grad for parameter in model.parameters()}
    try:
        model.requires_grad_(False)
        with _plain_attention(model):
            return _descend(batches(kept), batches(held), start, advance or (lambda count: None))
    finally:
        for parameter, learns in frozen.items():
            parameter.requires_grad_(learns)


def _descend(
    learned: Sequence[TeacherForcing],
    held: Sequence[TeacherForcing],
    start: Mapping[int, Tensor],
    advance: Advance,
) -> AnswerVectors:
    scale = {layer: learned[0].spread(layer) for layer in start}
    free = {layer: (v.detach().float().cpu() / scale[layer]).requires_grad_() for layer, v in start.items()}
    optimizer = torch.optim.Adam(free.values(), lr=_RATE)

    def scaled() -> dict[int, Tensor]:
        return {layer: v * scale[layer] for layer, v in free.items()}

    def missed() -> float:
        return sum(part.cross_entropy(scaled()) for part in held) / len(held)

    bare = sum(part.cross_entropy({}) for part in held) / len(held)
    first = best = missed()
    if not first < bare:
        # Vectors that make the answers no likelier are a worse beginning than none.
        for v in free.values():
            v.data.zero_()
        best = bare
    kept, at = {layer: v.detach() for layer, v in scaled().items()}, 0
    for step in range(1, STEPS + 1):
        optimizer.zero_grad()
        torch.autograd.backward(learned[step % len(learned)].loss(scaled()))
        optimizer.step()
        advance(1)
        if step % _EVERY == 0:
            now = missed()
            if now < best:
                best, at, kept = now, step, {layer: v.detach().clone() for layer, v in scaled().items()}
            elif step - at >= _EVERY * _PATIENCE:
                advance(STEPS - step)
                break
    return AnswerVectors(kept, bare, first, best, at)


@contextmanager
def _plain_attention(model: Any) -> Iterator[None]:
    """On a CPU the backward pass of fused attention is ten times slower than the plain one in bfloat16."""
    before = getattr(model.config, "_attn_implementation", None)
    if model.device.type != "cpu" or before != "sdpa":
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
