"""Which vectors are added, at which layers, how strongly.

A sibling's own vectors, or what is learned from the aligned model's answers (`learned_guide.py`), or what a
map makes of another family's vectors.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from torch import Tensor

from inferaligner.fit.options import FitModel, FitOptions
from inferaligner.fit.progress import Stages
from inferaligner.fit.samples import Samples
from inferaligner.fit.search_prompts import Outcome, Validation, validation
from inferaligner.fit.strength.search import search_strength
from inferaligner.fit.strength.trial import Search
from inferaligner.fit.transfer.learned_vectors import learn_guide
from inferaligner.method.gate import GuidanceGate
from inferaligner.method.steering_settings import SteeringSettings
from inferaligner.steering.plan import Positions

PAPER_STRENGTH = 4.0
POSITIONS: Positions = "from_gate"
"""Steered unless it is said otherwise; the paper steers the whole prompt."""

ENOUGH = 0.9
"""Share of the search's prompts declined, below which `fit` says that answers may guide better."""


@dataclass(frozen=True)
class Steering:
    """Settings, the search for them, and what was learned from answers (`learned` is `[layers, width]`)."""

    settings: SteeringSettings
    search: Search | None = None
    seconds: float = 0.0
    learned: Tensor | None = None
    answers: dict[str, Any] = field(default_factory=dict)

    def found(self) -> dict[str, Any]:
        """For the artifact's record of its calibration."""
        table = {} if self.search is None else _search_table(self.search, self.seconds)
        return {"search": table, "answers": self.answers}


def choose_steering(
    target: FitModel,
    aligned: FitModel,
    samples: Samples,
    gate: GuidanceGate,
    scores: Sequence[float],
    ssv: Tensor,
    options: FitOptions,
    outcome: Outcome,
    tell: Stages,
    *,
    own: bool,
) -> Steering:
    """`own` says that `ssv` is a sibling's, taken as it is; `scores` are held out, of `samples.fitting`."""
    if options.carry == "map" and own:
        tell.note("the aligned model has the target's width and depth: its vectors need no map")
    if options.paper:
        return Steering(_paper_settings(gate, len(ssv), options))
    learned, answers = None, dict[str, Any]()
    if options.carry == "answers" or (options.carry is None and not own):
        # Refusals take up the search; those that vectors are learned from are others.
        learned, answers = learn_guide(target, aligned, samples, gate, ssv, options, outcome, tell, own=own)
        options = replace(options, steer_layers=tuple(answers["layers"]))
    began = time.perf_counter()
    on = validation(target, aligned, samples, scores, options, outcome, tell)
    search = _search(target, gate, ssv if learned is None else learned, on, options, outcome, tell)
    chosen, seconds = search.chosen, time.perf_counter() - began
    declined = chosen.refusal or 0.0
    tell.note(
        f"steering {chosen.words()}: {declined:.0%} fluent refusals of {search.generated}; "
        f"found in {seconds:.0f} s"
    )
    if learned is None and own and not options.steers and declined < ENOUGH:
        tell.note(
            f"{declined:.0%} is little: vectors learned from the aligned model's answers may do better "
            "(--carry answers; docs/strength.md says at what cost)"
        )
    settings = SteeringSettings(
        layers=chosen.layers,
        strength=chosen.strength * search.margin,
        norm="difference",
        positions=options.positions or POSITIONS,
        profile=chosen.profile,
    )
    return Steering(settings, search, seconds, learned, answers)


def _search(
    target: FitModel,
    gate: GuidanceGate,
    vectors: Tensor,
    on: Validation,
    options: FitOptions,
    outcome: Outcome,
    tell: Stages,
) -> Search:
    with tell.stage("layers and strength") as advance:

        def tried(what: str) -> None:
            advance(1)

        return search_strength(
            target.model,
            target.tokenizer,
            vectors,
            gate,
            on=on,
            outcome=outcome,
            positions=options.positions or POSITIONS,
            layers=options.steer_layers,
            strength=options.strength,
            system=options.system,
            advance=tried,
        )


def _paper_settings(gate: GuidanceGate, depth: int, options: FitOptions) -> SteeringSettings:
    return SteeringSettings(
        layers=options.steer_layers or paper_layers(gate, depth),
        strength=options.strength or PAPER_STRENGTH,
        norm="unit",
        positions=options.positions or "all",
    )


def paper_layers(gate: GuidanceGate, depth: int) -> tuple[int, ...]:
    """The layers that are steered with the paper's constants."""
    # The paper names no numbers; it steers the layers where intent is told well, which are those from
    # the gate's upward, up to three quarters of the depth.
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
