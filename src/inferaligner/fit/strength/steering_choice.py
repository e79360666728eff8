"""Which vectors are added, at which layers, how strongly.

The vectors are a sibling's own, or learned from the aligned model's answers (`transfer/learned_vectors.py`),
or another family's carried over by a map. Layers and strength are searched (`strength_search.py`). Of a
sibling, vectors learned from its answers are tried first; if they make the target decline too little, in
answers that end, its own vectors are tried too, and the better of the two are taken.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from inferaligner.errors import CalibrationError
from inferaligner.fit.context import FitContext
from inferaligner.fit.gate.fitting import FittedGate
from inferaligner.fit.strength.search_prompts import ANSWER_TOKENS, SearchPrompts, search_prompts
from inferaligner.fit.strength.strength_search import MARGINS, TOLERANCE, merit, search_strength
from inferaligner.fit.strength.trial import Search
from inferaligner.fit.transfer.learned_vectors import learn_vectors
from inferaligner.fit.vectors import ExtractedVectors
from inferaligner.method.gate import GuidanceGate
from inferaligner.method.positions import Positions
from inferaligner.method.steering_settings import SteeringSettings

PAPER_STRENGTH = 4.0
POSITIONS: Positions = "from_gate"
"""The steered tokens by default; the paper steers the whole prompt."""


ENOUGH = 0.9
"""Merit of vectors learned from a sibling's answers, from which on its own vectors are not tried."""


@dataclass(frozen=True)
class Steering:
    """Settings, the search for them, and vectors `[layers, width]` that were learned from answers."""

    settings: SteeringSettings
    search: Search | None = None
    seconds: float = 0.0
    learned: Tensor | None = None
    answers: dict[str, Any] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """For the artifact's record of its calibration."""
        table = {} if self.search is None else _search_table(self.search, self.seconds)
        return {"search": table, "answers": self.answers}


def choose_steering(context: FitContext, gate: FittedGate, vectors: ExtractedVectors) -> Steering:
    """Chooses the vectors, and searches layers and strength for them.

    Raises:
        CalibrationError: the aligned model declines nothing, or its answers teach nothing.
    """
    options, progress, ssv = context.options, context.progress, vectors.ssv
    sibling = not vectors.transfer
    if options.carry == "map" and sibling:
        progress.note("the aligned model has the target's width and depth: its vectors need no map")
    if options.paper:
        return Steering(_paper_settings(context, gate.gate, len(ssv)))
    began = time.perf_counter()
    prompts = search_prompts(context, gate.held_out)
    if not prompts.must_end:
        progress.note(
            f"most refusals of the aligned model do not end within {ANSWER_TOKENS} tokens, so the target's "
            "need not end either"
        )

    def learn() -> _Candidate:
        # The vectors are learned from other refusals than those that the search needs.
        vectors, figures = learn_vectors(context, gate.gate, ssv, sibling=sibling)
        fixed = replace(context, options=replace(options, steer_layers=tuple(figures["layers"])))
        # They were learned at strength 1, on many prompts: a margin gained no refusal and broke some.
        search = _search(fixed, gate.gate, vectors, prompts, margins=())
        return _Candidate(search, vectors, figures)

    def take() -> _Candidate:
        return _Candidate(_search(context, gate.gate, ssv, prompts))

    if options.carry == "answers" or (options.carry is None and not sibling):
        taken = learn()
    elif options.carry is None and options.strength is None:
        taken = _better_of(context, learn, take)
    else:
        taken = take()
    search, seconds = taken.search, time.perf_counter() - began
    chosen = search.chosen
    progress.note(f"steering {chosen.words()}: {_outcomes(search)}; found in {seconds:.0f} s")
    settings = SteeringSettings(
        layers=chosen.layers,
        strength=chosen.strength * search.margin,
        norm="difference",
        positions=options.positions or POSITIONS,
        profile=chosen.profile,
    )
    return Steering(settings, search, seconds, taken.learned, taken.figures)


@dataclass(frozen=True)
class _Candidate:
    """The result of a search; learned vectors `[layers, width]` with their figures, where it used any."""

    search: Search
    learned: Tensor | None = None
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def merit(self) -> float:
        return merit(self.search.chosen)


def _better_of(
    context: FitContext, learn: Callable[[], _Candidate], take: Callable[[], _Candidate]
) -> _Candidate:
    """Vectors learned from a sibling's answers, or its own where they do better."""
    note = context.progress.note
    try:
        learned = learn()
    except CalibrationError as error:
        note(f"the aligned model's own vectors are taken, because its answers taught nothing ({error})")
        return take()
    if learned.merit >= ENOUGH:
        return learned
    own = take()
    note(
        f"vectors learned from the aligned model's answers: {_outcomes(learned.search)}; its own vectors: "
        f"{_outcomes(own.search)}"
    )
    if own.merit > learned.merit + TOLERANCE:
        return own
    return replace(learned, figures={**learned.figures, "own_vectors": asdict(own.search.chosen)})


def _outcomes(search: Search) -> str:
    chosen = search.chosen
    return (
        f"{chosen.refusal or 0.0:.0%} fluent refusals of {search.generated}, "
        f"{chosen.unended or 0.0:.0%} that do not end, {chosen.gibberish or 0.0:.0%} gibberish"
    )


def _search(
    context: FitContext,
    gate: GuidanceGate,
    vectors: Tensor,
    prompts: SearchPrompts,
    margins: Sequence[float] = MARGINS,
) -> Search:
    options = context.options
    with context.progress.stage("layers and strength") as advance:
        return search_strength(
            context.target.model,
            context.target.tokenizer,
            vectors,
            gate,
            prompts=prompts,
            outcome=context.outcome,
            positions=options.positions or POSITIONS,
            layers=options.steer_layers,
            strength=options.strength,
            margins=margins,
            system=options.system,
            report=lambda trial: advance(1),
        )


def _paper_settings(context: FitContext, gate: GuidanceGate, depth: int) -> SteeringSettings:
    options = context.options
    return SteeringSettings(
        layers=tuple(options.steer_layers or paper_layers(gate, depth)),
        strength=options.strength or PAPER_STRENGTH,
        norm="unit",
        positions=options.positions or "all",
    )


def paper_layers(gate: GuidanceGate, depth: int) -> tuple[int, ...]:
    """The layers that are steered with the paper's constants."""
    # The paper names no numbers. It steers the layers whose activations separate intent well: those from the
    # gate's layer up to three quarters of the depth.
    return tuple(range(gate.last_layer, max(gate.last_layer + 1, round(0.75 * depth))))


def _search_table(search: Search, seconds: float) -> dict[str, Any]:
    return {
        "unsteered_cross_entropy": search.unsteered,
        "chosen": asdict(search.chosen),
        "trials": [asdict(trial) for trial in search.trials],
        "prompts": search.prompts,
        "generated": search.generated,
        "harmless": search.harmless,
        "harmless_unsteered": search.harmless_unsteered,
        "gate_layer": search.gate_layer,
        "below_gate": [asdict(trial) for trial in search.below],
        "most": search.most,
        "tolerance": search.tolerance,
        "margin": search.margin,
        "seconds": round(seconds, 1),
    }
