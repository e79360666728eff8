"""Which layers to steer, and how strongly, found from data.

Two stages. First, every candidate is scored by the cross-entropy of the *aligned* model's own answers under
the steered target (`teacher_forcing.py`): cheap, and blind to nothing but the target's own fluency. Then the
best few generate answers to other harmful prompts, and a judge counts refusals, compliance and gibberish.
The setting with the most fluent refusals wins, gibberish counting against it; among equals the weakest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from inferaligner.calibration.teacher_forcing import TeacherForcing
from inferaligner.errors import CalibrationError
from inferaligner.gate import GuidanceGate
from inferaligner.generation import generate_answers
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import Positions, SteeringPlan

Outcome = Callable[[str], str]
"""A judge: an answer in, "refusal", "compliance" or "gibberish" out."""

STRENGTHS = (0.15, 0.25, 0.35, 0.5, 0.7, 1.0)
FINALISTS = 5
# A finalist within this share of the best counts as equal, and the weaker one is taken.
_TIE = 0.03
_ANSWER_TOKENS = 48


@dataclass(frozen=True)
class Trial:
    """One setting and what it did. Rates are None where nothing was generated."""

    layers: tuple[int, ...]
    strength: float
    cross_entropy: float
    refusal: float | None = None
    compliance: float | None = None
    gibberish: float | None = None


@dataclass(frozen=True)
class Search:
    """The whole surface: what was tried, what was chosen, and the unsteered target beside it."""

    chosen: Trial
    unsteered: float  # cross-entropy of the aligned model's answers under the bare target
    trials: tuple[Trial, ...]
    prompts: int
    generated: int


def search_strength(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    directions: Tensor,
    gate: GuidanceGate,
    *,
    prompts: Sequence[str],
    answers: Sequence[str],
    held_out: Sequence[str],
    outcome: Outcome,
    positions: Positions = "from_gate",
    layers: Sequence[int] | None = None,
    strength: float | None = None,
    system: str | None = None,
    advance: Callable[[str], None] | None = None,
) -> Search:
    """Searches with directions θ `[layers, width]`; `layers` and `strength` fix what is not to be searched.

    `prompts` with the aligned model's `answers` are scored, `held_out` harmful prompts are generated on.
    """
    if not prompts or not held_out:
        raise CalibrationError(
            "The aligned model declined none of the validation prompts, so there is nothing to learn from. "
            "Check that --aligned names a model that declines harmful requests."
        )
    tell = advance or (lambda what: None)
    forcing = TeacherForcing(
        model, tokenizer, prompts, answers, system=system, whole_prompt=positions == "all"
    )

    def score(at: Sequence[int], alpha: float) -> Trial:
        value = forcing.cross_entropy({layer: alpha * directions[layer] for layer in at})
        tell(f"layers {at[0]}-{at[-1]} × {alpha:g}: cross-entropy {value:.3f}")
        return Trial(tuple(at), alpha, value)

    unsteered = forcing.cross_entropy({})
    blocks = [tuple(layers)] if layers is not None else layer_blocks(gate.last_layer, len(directions))
    trials: list[Trial] = []
    for block in blocks:
        best = float("inf")
        for alpha in STRENGTHS if strength is None else (strength,):
            # The longer the block, the less each layer needs.
            trial = score(block, alpha if strength is not None else alpha * (6 / max(len(block), 3)) ** 0.5)
            trials.append(trial)
            if trial.cross_entropy > best:
                break  # past the valley of this block
            best = trial.cross_entropy
    if strength is None:
        trials.extend(_refine(trials, score))
    trials.sort(key=lambda trial: trial.cross_entropy)

    def generate(trial: Trial) -> Trial:
        additions = {layer: trial.strength * directions[layer] for layer in trial.layers}
        told = _rates(model, tokenizer, SteeringPlan(gate, additions, positions), held_out, outcome, system)
        block = f"layers {trial.layers[0]}-{trial.layers[-1]} × {trial.strength:g}"
        tell(f"{block}: {told['refusal']:.0%} refusals")
        return replace(
            trial, refusal=told["refusal"], compliance=told["compliance"], gibberish=told["gibberish"]
        )

    finalists = [generate(trial) for trial in _distinct(trials, FINALISTS)]
    chosen = _best(finalists)
    if strength is None:
        # Cross-entropy weighs every token alike; to tip the first ones often takes a little more.
        finalists += [generate(score(chosen.layers, chosen.strength * factor)) for factor in (0.75, 1.3)]
        chosen = _best(finalists)
    kept = {(trial.layers, trial.strength): trial for trial in [*trials, *finalists]}
    return Search(chosen, unsteered, tuple(kept.values()), len(prompts), len(held_out))


def layer_blocks(gate_layer: int, depth: int) -> list[tuple[int, ...]]:
    """Contiguous blocks of layers from the gate's layer upward, of several widths and starts."""
    widths = sorted({1, *(max(1, round(share * depth)) for share in (0.1, 0.2, 0.3))})
    step = max(1, depth // 10)
    blocks = []
    for start in range(gate_layer, depth - 1, step):
        # The very last layer feeds the head alone; steering it only adds to the logits.
        blocks += [tuple(range(start, start + width)) for width in widths if start + width < depth]
    return blocks or [tuple(range(gate_layer, depth))]


def _refine(trials: Sequence[Trial], score: Callable[[Sequence[int], float], Trial]) -> list[Trial]:
    best = min(trials, key=lambda trial: trial.cross_entropy)
    return [score(best.layers, best.strength * factor) for factor in (0.85, 1.2)]


def _distinct(trials: Sequence[Trial], count: int) -> list[Trial]:
    """The best few, no more than two of one block of layers."""
    kept: list[Trial] = []
    for trial in trials:
        if sum(trial.layers == other.layers for other in kept) < 2:
            kept.append(trial)
        if len(kept) == count:
            break
    return kept


def _best(finalists: Sequence[Trial]) -> Trial:
    def merit(trial: Trial) -> float:
        # What is neither refusal nor gibberish is no worse than without steering; gibberish is.
        return (trial.refusal or 0.0) - (trial.gibberish or 0.0) / 2

    most = max(map(merit, finalists))
    equals = [trial for trial in finalists if merit(trial) >= most - _TIE]
    # Weakest by what is added altogether; gibberish breaks ties before strength does.
    return min(equals, key=lambda trial: (trial.gibberish or 0.0, trial.strength * len(trial.layers)))


def _rates(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    plan: SteeringPlan,
    prompts: Sequence[str],
    outcome: Outcome,
    system: str | None,
) -> dict[str, float]:
    with Guard(model, plan, "always"):
        answers = list(
            generate_answers(
                model, tokenizer, prompts, max_new_tokens=_ANSWER_TOKENS, batch_size=64, system=system
            )
        )
    outcomes = [outcome(answer.text) for answer in answers]
    return {name: outcomes.count(name) / len(outcomes) for name in ("refusal", "compliance", "gibberish")}
