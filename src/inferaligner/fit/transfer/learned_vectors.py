"""Vectors learned from the aligned model's answers: which prompts it is asked, which layers learn.

Used where the aligned model is of another family, so that its activations do not fit the target's, and for a
sibling where that is asked for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from inferaligner.errors import CalibrationError
from inferaligner.fit.options import FitModel, FitOptions
from inferaligner.fit.progress import Stages
from inferaligner.fit.samples import Samples
from inferaligner.fit.search_prompts import GENERATED, SCORED, Outcome, declined_by, shuffled_harmful
from inferaligner.fit.transfer.answer_vectors import answer_vectors, steps
from inferaligner.method.gate import GuidanceGate
from inferaligner.method.vectors import cosine

_LEARNED = 64  # refusals that vectors are learned from
_TOKENS = 32
"""Of each of them. The vectors act on every token of an answer: learned from openings alone, they made
gemma-3-270m say "I'm not equipped to help to help to help"."""


def learn_guide(
    target: FitModel,
    aligned: FitModel,
    samples: Samples,
    gate: GuidanceGate,
    start: Tensor,
    options: FitOptions,
    outcome: Outcome,
    tell: Stages,
    *,
    own: bool,
) -> tuple[Tensor, dict[str, Any]]:
    """`start`, with the steered layers' vectors learned from answers: a sibling's SSV (`own`), or a map's.

    Raises `CalibrationError` where nothing was learned that `start` did not do already.
    """
    # Above the gate the decision is known in time; the earlier, the more of the target can read it.
    layers = options.steer_layers or (gate.last_layer,)
    # What the search generates on is not learned from, nor what it scores, if there are enough others.
    known = shuffled_harmful(samples)
    pool = known[2 * SCORED + GENERATED :]
    if len(pool) < 2 * _LEARNED:
        pool = known[: 2 * SCORED] + pool
    # Short prompts teach as well, and faster.
    short = set(sorted(pool, key=len)[: max(len(pool) // 2, 2 * _LEARNED)])
    asked = [prompt for prompt in pool if prompt in short][: 2 * _LEARNED]
    declined = declined_by(aligned, asked, options, outcome, tell, _TOKENS)[:_LEARNED]
    with tell.stage("vectors from the aligned model's answers", steps()) as advance:
        learned = answer_vectors(
            target.model,
            target.tokenizer,
            [prompt for prompt, _ in declined],
            [answer for _, answer in declined],
            start={layer: start[layer] for layer in layers},
            system=options.system,
            advance=advance,
        )
    if not options.accept_poor_map:
        learned.check(target.spec, aligned.spec)
        if own and not learned.end < learned.start:
            raise CalibrationError(
                f"The answers of {aligned.spec} teach nothing that its own vectors do not do already: "
                f"held-out cross-entropy {learned.start:.2f} nats per token. Leave --carry answers out."
            )
    ssv = start.clone()
    for layer, vector in learned.vectors.items():
        ssv[layer] = vector
    table = {
        "layers": list(layers),
        "prompts": len(declined),
        "steps": learned.steps,
        "cross_entropy": {"bare": learned.bare, "start": learned.start, "learned": learned.end},
        "cosine_start": float(cosine(ssv, start)[list(layers)].mean()),
    }
    tell.note(
        f"held-out cross-entropy of the aligned model's answers: {learned.bare:.2f} nats per token of the "
        f"bare target, {learned.start:.2f} with the vectors it gave, {learned.end:.2f} with those learned"
    )
    return ssv, table
