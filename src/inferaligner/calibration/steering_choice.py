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

from inferaligner.calibration.fit_options import FitOptions, Side
from inferaligner.calibration.learned_guide import learn_guide
from inferaligner.calibration.samples import Samples
from inferaligner.calibration.stages import Stages
from inferaligner.calibration.strength import search_strength
from inferaligner.calibration.trial import Search
from inferaligner.calibration.validation import Outcome, validation
from inferaligner.gate import GuidanceGate
from inferaligner.steering_settings import SteeringSettings

PAPER_STRENGTH = 4.0

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
    target: Side,
    aligned: Side,
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

    if options.carry == "answers" or (options.carry is None and not own and not options.paper):
        # Refusals take up the search; those that vectors are learned from are others.
        learned, told = learn_guide(target, aligned, samples, gate, ssv, options, outcome, tell, own=own)
        options = replace(options, steer_layers=tuple(told["layers"]))
        found = _searched(target, aligned, samples, gate, scores, learned, options, outcome, tell)
        return replace(found, learned=learned, answers=told)
    if options.carry == "map" and own:
        tell.note("the aligned model has the target's width and depth: its vectors need no map")
    found = _searched(target, aligned, samples, gate, scores, ssv, options, outcome, tell)
    declined = None if found.search is None else found.search.chosen.refusal
    if own and not options.steers and declined is not None and declined < ENOUGH:
        tell.note(
            f"{declined:.0%} is little: vectors learned from the aligned model's answers may do better "
            "(--carry answers; docs/strength.md says at what cost)"
        )
    return found


def _searched(
    target: Side,
    aligned: Side,
    samples: Samples,
    gate: GuidanceGate,
    scores: Sequence[float],
    ssv: Tensor,
    options: FitOptions,
    outcome: Outcome,
    tell: Stages,
) -> Steering:
    if options.paper:
        settings = SteeringSettings(
            layers=options.steer_layers or paper_layers(gate, len(ssv)),
            strength=options.strength or PAPER_STRENGTH,
            norm="unit",
            positions=options.positions or "all",
        )
        return Steering(settings)
    began = time.perf_counter()
    positions = options.positions or "from_gate"
    on = validation(target, aligned, samples, scores, options, outcome, tell)
    with tell.stage("layers and strength") as advance:

        def tried(what: str) -> None:
            advance(1)

        search = search_strength(
            target.model,
            target.tokenizer,
            ssv,
            gate,
            on=on,
            outcome=outcome,
            positions=positions,
            layers=options.steer_layers,
            strength=options.strength,
            system=options.system,
            advance=tried,
        )
    chosen = search.chosen
    tell.note(
        f"steering {chosen.words()}: {chosen.refusal or 0:.0%} fluent refusals of {search.generated}; "
        f"found in {time.perf_counter() - began:.0f} s"
    )
    settings = SteeringSettings(
        layers=chosen.layers,
        strength=chosen.strength * search.margin,
        norm="difference",
        positions=positions,
        profile=chosen.profile,
    )
    return Steering(settings, search, time.perf_counter() - began)


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
