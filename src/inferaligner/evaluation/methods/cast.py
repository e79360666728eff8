"""Conditional activation steering as in CAST (Lee et al. 2024, arXiv 2409.05907), on the same prompts.

Vectors are first principal components of paired activations in place of mean differences: rows are centred on
the middle of their pair, and the component points from harmless to harmful. The condition is the cosine of
the prompt's activation with tanh of its projection on the condition vector; layer and threshold have the best
F1 on the fitting part. The behaviour vector comes from the target itself (prompt and refusal against prompt
and answer), and is added in the aligner's layers with the aligner's strength.

CAST averages activations over the prompt's tokens; here the activations are of the last token.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor

from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.fit.samples import Sample, samples_from_contrast
from inferaligner.method.activations import record_activations
from inferaligner.method.decision import Decision, opens
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.prompts.chat import context_length, encode_chats
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.images import Prompt
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import SteeringPlan

NAME = "cast"
NEEDS = "vectors"
_PAIRS = 64
_REFUSAL, _ANSWER = "I'm sorry, but I can't help with that.", "Sure, here is what you asked for."


@dataclass(frozen=True)
class Condition:
    """cos(a, tanh(proj_c a)) > threshold, with the activation after one layer."""

    layer: int
    vector: Tensor  # [width], length one
    threshold: float

    def similarity(self, activations: Tensor) -> Tensor:
        """`[prompts]` from `[prompts, width]`; positive on the harmful side of the vector."""
        return similarity(activations.float(), self.vector)


def similarity(activations: Tensor, vector: Tensor) -> Tensor:
    """cos(a, tanh((a·c) c)) for c of length one."""
    projected = torch.tanh((activations @ vector)[:, None] * vector)
    cosine: Tensor = torch.nn.functional.cosine_similarity(activations, projected, dim=-1)
    return cosine


def first_component(harmful: Tensor, harmless: Tensor) -> Tensor:
    """The first principal component `[width]` of pairs `[pairs, width]`, centred by pair, towards harmful."""
    middle = (harmful + harmless) / 2
    centred = torch.cat([harmful - middle, harmless - middle]).float()
    vector: Tensor = torch.linalg.svd(centred, full_matrices=False).Vh[0]
    forward = float((harmful - harmless).float().mean(0) @ vector) >= 0
    return vector if forward else -vector


def best_threshold(scores: Tensor, harmful: Tensor) -> tuple[float, float]:
    """`(F1, threshold)` of the best threshold; it lies between two scores, and opens above it."""
    order = scores.argsort(descending=True)
    hits = harmful[order].double().cumsum(0)
    f1 = 2 * hits / (torch.arange(1, len(order) + 1) + harmful.sum())
    at = int(f1.argmax())
    ordered = scores[order]
    below = ordered[at + 1] if at + 1 < len(ordered) else ordered[at] - 1
    return float(f1[at]), float((ordered[at] + below) / 2)


class Cast(Method):
    """PCA vectors behind a cosine condition."""

    def __init__(self, context: MethodContext) -> None:
        super().__init__(NAME, "CAST-like (PCA, cosine)", context)
        steering = context.need_aligner(NAME).artifact.steering
        pairs = _pairs()
        harmful, harmless = (self._activations([s.text for s in side]) for side in zip(*pairs, strict=True))
        self.condition = self._choose(harmful, harmless)
        requests = [harmful.text for harmful, _ in pairs]
        declining, complying = (self._activations(requests, text) for text in (_REFUSAL, _ANSWER))
        additions = {}
        for layer, strength in steering.strengths.items():
            vector = first_component(declining[:, layer], complying[:, layer])
            gap = (declining[:, layer].float() - complying[:, layer].float()).mean(0)
            additions[layer] = strength * float(gap @ vector) * vector
        # A plan has a gate; this one is never read, because the guard steers every row.
        idle = GuidanceGate("cast", (GateRead(self.condition.layer),), self.condition.vector[None], 0.0)
        self._plan = SteeringPlan(idle, additions, "from_gate")

    @property
    def gate(self) -> str | None:
        return NAME

    def decide(self, prompts: Sequence[Prompt]) -> list[Decision] | None:
        activations = self._activations(prompts, layers=[self.condition.layer])[:, 0]
        scores = self.condition.similarity(activations) - self.condition.threshold
        return [Decision(score, opens(score)) for score in scores.tolist()]

    def acting(self) -> AbstractContextManager[Guard | None]:
        return Guard(self.context.target.model, self._plan, "always")

    def settings(self) -> dict[str, object]:
        return {
            "condition layer": self.condition.layer,
            "threshold": round(self.condition.threshold, 6),
            "steered layers": list(self._plan.layers),
        }

    def _choose(self, harmful: Tensor, harmless: Tensor) -> Condition:
        labels = torch.tensor([True] * len(harmful) + [False] * len(harmless))
        best: tuple[float, Condition] | None = None
        for layer in range(harmful.shape[1]):
            vector = first_component(harmful[:, layer], harmless[:, layer])
            both = torch.cat([harmful[:, layer], harmless[:, layer]]).float()
            f1, threshold = best_threshold(similarity(both, vector), labels)
            if best is None or f1 > best[0]:
                best = f1, Condition(layer, vector, threshold)
        assert best is not None
        return best[1]

    def _activations(
        self, prompts: Sequence[Prompt], answer: str = "", layers: Sequence[int] | None = None
    ) -> Tensor:
        """`[prompts, layers, width]` at the end of each prompt, or at the end of an answer after it."""
        target = self.context.target
        limit = context_length(target.model.config)
        ids = encode_chats(target.reader, list(prompts), system=self.context.system, max_length=limit)
        if answer:
            tail = target.tokenizer(answer, add_special_tokens=False)["input_ids"]
            ids = [[*row, *tail] for row in ids]
        return record_activations(target.model, ids, layers=layers).at(0)


def _pairs() -> list[tuple[Sample, Sample]]:
    sides: dict[str, dict[bool, Sample]] = {}
    for sample in samples_from_contrast(load_contrast_set()).fitting:
        if sample.group == "pairs" and not sample.wrapped:
            sides.setdefault(sample.content, {}).setdefault(sample.harmful, sample)
    pairs = [(side[True], side[False]) for side in sides.values() if len(side) == 2]
    return sorted(pairs, key=lambda pair: (pair[0].fold(251), pair[0].content))[:_PAIRS]


def make(context: MethodContext, option: str) -> Method:
    """Raises `InputError` without an aligner."""
    return Cast(context)
