"""Vectors learned from the aligned model's answers: which prompts it answers, which layers learn.

Used where the aligned model is of another family, so that its activations do not fit the target's, and for a
sibling, whose own vectors may not make the target decline in answers that end.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from inferaligner.errors import CalibrationError
from inferaligner.fit.context import FitContext
from inferaligner.fit.strength.search_prompts import GENERATED, SCORED, refusals_of_guide, shuffled_harmful
from inferaligner.fit.transfer.answer_vectors import STEPS, answer_vectors
from inferaligner.method.gate import GuidanceGate
from inferaligner.method.vectors import cosine

_LEARNED = 96
"""Refusals that vectors are learned from, with the token that ends them: the vectors act on every token of an
answer."""

_EVERY_SECOND, _LAYERS = 2, 3
"""One layer can change the first words; three, two layers apart, also carry an answer to its end."""


def learn_vectors(
    context: FitContext, gate: GuidanceGate, start: Tensor, *, sibling: bool
) -> tuple[Tensor, dict[str, Any]]:
    """Learns the steered layers' vectors from answers.

    Args:
        start: `[layers, width]`, where the search begins: a sibling's SSV, or one that a map carried over.
        sibling: whether `start` is a sibling's.

    Returns:
        `start` with the learned vectors in place of the steered layers', and figures for the artifact.

    Raises:
        CalibrationError: nothing was learned that improves on the bare target, or on a sibling's `start`.
    """
    target, guide, options = context.target, context.guide, context.options
    # Above the gate the decision is known in time; the earlier, the more of the target can read it.
    layers = options.steer_layers or learned_layers(gate.last_layer, len(start))
    # Without the prompts that the search generates on, and without those it scores if others are enough.
    known = shuffled_harmful(context.samples)
    pool = known[2 * SCORED + GENERATED :]
    if len(pool) < 2 * _LEARNED:
        pool = known[: 2 * SCORED] + pool
    # Short prompts teach as well, and faster.
    short = set(sorted(pool, key=len)[: max(len(pool) // 2, 2 * _LEARNED)])
    prompts = [prompt for prompt in pool if prompt in short][: 3 * _LEARNED // 2]
    refusals = refusals_of_guide(context, prompts)[:_LEARNED]
    with context.progress.stage("vectors from the aligned model's answers", STEPS) as advance:
        learned = answer_vectors(
            target.model,
            target.tokenizer,
            [prompt for prompt, _ in refusals],
            [answer.text for _, answer in refusals],
            ended=[True] * len(refusals),
            start={layer: start[layer] for layer in layers},
            system=options.system,
            advance=advance,
        )
    if not options.accept_poor_map:
        learned.check(target.spec, guide.spec)
        if sibling and not learned.end < learned.start:
            raise CalibrationError(
                f"The answers of {guide.spec} teach nothing beyond its own vectors: held-out cross-entropy "
                f'{learned.start:.2f} nats per token. Leave `carry="answers"` out.'
            )
    vectors = start.clone()
    for layer, vector in learned.vectors.items():
        vectors[layer] = vector
    figures = {
        "layers": list(layers),
        "prompts": len(refusals),
        "steps": learned.steps,
        "cross_entropy": {"bare": learned.bare, "start": learned.start, "learned": learned.end},
        "cosine_start": float(cosine(vectors, start)[list(layers)].mean()),
    }
    context.progress.note(
        f"held-out cross-entropy of the aligned model's answers: {learned.bare:.2f} nats per token of the "
        f"bare target, {learned.start:.2f} with its vectors, {learned.end:.2f} with the learned ones"
    )
    return vectors, figures


def learned_layers(gate_layer: int, depth: int) -> tuple[int, ...]:
    """The layers that learn a vector: the gate's last layer, and those two and four above it, as far as there
    are layers above them that read the result. Not layer 0, with which no control vector of llama.cpp begins.
    """
    first = min(max(gate_layer, 1), depth - 1)
    above = [first + _EVERY_SECOND * number for number in range(1, _LAYERS)]
    return (first, *(layer for layer in above if layer < depth - 1))
