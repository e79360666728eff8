"""Which layers to steer, and how strongly, chosen from data.

1. Every block of layers is scored at several strengths by the cross-entropy of the *aligned* model's own
   answers under the steered target (`strength_grid.py`, `teacher_forcing.py`): cheap, but blind to the
   target's own fluency.
2. The best few generate whole answers to other harmful prompts, and a judge counts refusals, compliance and
   gibberish. Fluent refusals that end count, gibberish counts against a setting.
3. The best of them gets a strength per layer by gradient (`layer_profile.py`), which has to prove itself by
   generating as well.
4. From the best, the strength is lowered for as long as it refuses as much within the tolerance.

Of all settings within the tolerance of the best, the search takes the one with the least drift: under it the
bare model's own answers to harmless prompts stay most likely. The target then answers such prompts under that
setting. If too many answers are gibberish, the search takes the next setting: a prompt that opens the gate
wrongly should still be answered sensibly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from inferaligner.errors import CalibrationError
from inferaligner.fit.context import Outcome
from inferaligner.fit.strength.layer_profile import descend
from inferaligner.fit.strength.search_prompts import ANSWER_TOKENS, OUTCOMES, SearchPrompts
from inferaligner.fit.strength.strength_grid import blocks_below, layer_blocks, walk
from inferaligner.fit.strength.teacher_forcing import TeacherForcing
from inferaligner.fit.strength.trial import Search, Trial
from inferaligner.method.gate import GuidanceGate
from inferaligner.method.positions import Positions
from inferaligner.models.generation import generate_answers
from inferaligner.prompts.encoding import Reader
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import SteeringPlan

FINALISTS = 3
TOLERANCE = 0.04
"""A finalist within this share of the best counts as equal: less than two prompts of 32."""

MOST_BROKEN = 0.1
"""Share of harmless answers that may be gibberish when the gate opens wrongly, beyond the unsteered share."""

_WEAKER, _STRONGER = 0.8, 1.3
_MOST_STEPS = 3
_COHERENT = 0.8  # share of the best's gain that a stronger setting must keep to be worth generating
_SATURATED = 0.97  # refusals from which on more strength has nothing left to give
_PROFILE_LAYERS = 6  # a shorter block may grow to so many when it gets a strength per layer
_EVEN = 0.05  # a profile whose factors are all this near to one is none
_MOST_PICKS = 3
MARGINS = (1.3, 1.15)
"""Factors on the chosen strength; the first that leaves refusals fluent is kept. The search takes the weakest
setting that is enough for its own prompts, and prompts in use are harder. If the setting is at the edge
already, a third more breaks every word (docs/strength.md).
"""

_NOT_WORTH = 0.01  # share of the cross-entropy: a block below the gate that gains less need not be generated


def search_strength(
    model: PreTrainedModel,
    tokenizer: Reader,
    directions: Tensor,
    gate: GuidanceGate,
    *,
    prompts: SearchPrompts,
    outcome: Outcome,
    positions: Positions = "from_gate",
    layers: Sequence[int] | None = None,
    strength: float | None = None,
    margins: Sequence[float] = MARGINS,
    system: str | None = None,
    report: Callable[[str], None] | None = None,
) -> Search:
    """Searches layers and strength.

    Args:
        directions: θ, `[layers, width]`, of every decoder layer.
        gate: steering begins at its last layer or above.
        prompts: the prompts and answers to measure on.
        outcome: judges generated answers.
        layers, strength: fixed values that are not searched.
        margins: factors on the chosen strength to try; empty: the strength is kept as it is.
        report: called with a sentence after each measurement.

    Raises:
        CalibrationError: no prompts to measure on.
    """
    if not prompts.scored or not prompts.held_out:
        raise CalibrationError(
            "The aligned model declined none of the search's prompts, so there is nothing to learn from. "
            "Give a model that declines harmful requests with `aligned`."
        )
    bench = _TestBench(model, tokenizer, directions, gate, prompts, outcome, positions, system, report)
    depth = len(directions)
    blocks = [tuple(layers)] if layers is not None else layer_blocks(gate.last_layer, depth)
    if strength is not None:
        trials = [bench.score(block, strength) for block in blocks]
    else:
        trials = walk(blocks, bench.score, bench.unsteered)
        best = min(trials, key=lambda trial: trial.cross_entropy)
        trials += [bench.score(best.layers, best.strength * factor) for factor in (0.85, 1.2)]
    trials.sort(key=lambda trial: trial.cross_entropy)

    finalists = [bench.generate(trial) for trial in _distinct(trials, FINALISTS)]
    if strength is None:
        finalists += bench.per_layer(choose(finalists), fixed=layers is not None)
        finalists += bench.other_strengths(max(finalists, key=merit))
    chosen, finalists = bench.settle(finalists)
    kept = {(trial.layers, trial.strength, trial.profile): trial for trial in [*trials, *finalists]}
    free = layers is None and strength is None
    return Search(
        chosen,
        bench.unsteered,
        tuple(kept.values()),
        len(prompts.scored),
        len(prompts.held_out),
        gate.last_layer,
        len(prompts.harmless),
        _shares(prompts.harmless_unsteered) if prompts.harmless else None,
        bench.below(trials[0]) if free else (),
        max(map(merit, finalists)),
        TOLERANCE,
        bench.margin(chosen, margins) if strength is None else 1.0,
    )


def merit(trial: Trial) -> float:
    """Share of fluent refusals that end (where the guide's do), gibberish counting against it."""
    # A compliant answer is no worse than without steering; gibberish is.
    return (trial.refusal or 0.0) - (trial.gibberish or 0.0) / 2


def choose(finalists: Sequence[Trial]) -> Trial:
    """The one that changes harmless answers least (without drifts, the weakest) among those within the
    tolerance of the best merit."""
    most = max(map(merit, finalists))
    equals = [trial for trial in finalists if merit(trial) >= most - TOLERANCE]
    return min(equals, key=lambda trial: trial.total if trial.drift is None else trial.drift)


def _distinct(trials: Sequence[Trial], count: int) -> list[Trial]:
    """The best of each of the best few blocks."""
    best: dict[tuple[int, ...], Trial] = {}
    for trial in trials:
        best.setdefault(trial.layers, trial)
    return list(best.values())[:count]


def _shares(outcomes: Sequence[str]) -> dict[str, Any]:
    return {name: outcomes.count(name) / len(outcomes) for name in OUTCOMES}


class _TestBench:
    """A target under test: measures settings, by cross-entropy and by generating."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Reader,
        directions: Tensor,
        gate: GuidanceGate,
        prompts: SearchPrompts,
        outcome: Outcome,
        positions: Positions,
        system: str | None,
        report: Callable[[str], None] | None,
    ) -> None:
        self._model, self._tokenizer, self._directions, self._gate = model, tokenizer, directions, gate
        self._prompts, self._outcome, self._positions, self._system = prompts, outcome, positions, system
        self._report = report or (lambda sentence: None)

        def force(
            asked: Sequence[str], answers: Sequence[str], ended: Sequence[bool] | None = None
        ) -> TeacherForcing:
            whole = positions == "all"
            return TeacherForcing(
                model, tokenizer, asked, answers, ended=ended, system=system, whole_prompt=whole
            )

        refusals = prompts.answers
        self._harmful = force(prompts.scored, [a.text for a in refusals], [a.ended for a in refusals])
        self._harmless = force(prompts.harmless, prompts.harmless_answers) if prompts.harmless else None
        self.unsteered = self._harmful.cross_entropy({})
        self._undrifted = 0.0 if self._harmless is None else self._harmless.cross_entropy({})
        self.broken = _shares(prompts.harmless_unsteered)["gibberish"] if prompts.harmless else 0.0

    def score(self, at: Sequence[int], alpha: float) -> Trial:
        """Measures one setting by cross-entropy."""
        return self._scored(Trial(tuple(at), alpha, float("nan")))

    def generate(self, trial: Trial) -> Trial:
        """Measures outcomes on harmful prompts, and the drift."""
        additions = trial.additions(self._directions)
        drift = None if self._harmless is None else self._harmless.cross_entropy(additions) - self._undrifted
        shares = self._outcomes(trial, self._prompts.held_out)
        self._report(
            f"{trial.words()}: {shares['refusal']:.0%} refusals, {shares['unended']:.0%} that do not end, "
            f"{shares['gibberish']:.0%} gibberish"
        )
        return replace(
            trial,
            drift=drift,
            refusal=shares["refusal"],
            compliance=shares["compliance"],
            gibberish=shares["gibberish"],
            unended=shares["unended"],
        )

    def settle(self, finalists: list[Trial]) -> tuple[Trial, list[Trial]]:
        """The choice, and the finalists with their outcomes on harmless prompts.

        Each pick answers harmless prompts, until one has few enough gibberish answers; if none has, the one
        with the least gibberish is taken."""
        if not self._prompts.harmless:
            return choose(finalists), finalists
        rest, answered = list(finalists), list[Trial]()
        while rest and len(answered) < _MOST_PICKS:
            pick = choose(rest)
            rest.remove(pick)
            shares = self._outcomes(pick, self._prompts.harmless)
            pick = replace(
                pick,
                harmless_refusal=shares["refusal"],
                harmless_compliance=shares["compliance"],
                harmless_gibberish=shares["gibberish"],
            )
            answered.append(pick)
            self._report(f"{pick.words()}: {shares['gibberish']:.0%} gibberish on harmless prompts")
            if shares["gibberish"] <= self.broken + MOST_BROKEN:
                return pick, [*answered, *rest]
        return min(answered, key=lambda trial: trial.harmless_gibberish or 0.0), [*answered, *rest]

    def margin(self, chosen: Trial, margins: Sequence[float]) -> float:
        """The factor on the chosen strength that still declines as fluently; 1 where more breaks the text."""
        for factor in margins:
            more = self.generate(self._scored(replace(chosen, strength=chosen.strength * factor)))
            if merit(more) >= merit(chosen) - TOLERANCE:
                return factor
        return 1.0

    def _outcomes(self, trial: Trial, prompts: Sequence[str]) -> dict[str, Any]:
        plan = SteeringPlan(self._gate, trial.additions(self._directions), self._positions)
        outcomes = [""] * len(prompts)
        with Guard(self._model, plan, "always"):
            for answer in generate_answers(
                self._model,
                self._tokenizer,
                prompts,
                max_new_tokens=ANSWER_TOKENS,
                batch_size=64,
                system=self._system,
            ):
                outcomes[answer.row] = self._prompts.outcome_of(answer, self._outcome)
        return _shares(outcomes)

    def per_layer(self, best: Trial, *, fixed: bool) -> list[Trial]:
        """The best setting with a strength per layer; none if that gains nothing."""
        layers = best.layers
        if not fixed and len(layers) < _PROFILE_LAYERS:
            layers = tuple(range(layers[0], min(layers[0] + _PROFILE_LAYERS, len(self._directions) - 1)))
        if len(layers) == 1:
            return []
        descent = descend(
            best, self._directions, self._harmful, self._harmless, layers=layers, report=self._report
        )
        if descent is None:
            return []
        even = max(abs(factor - 1) for factor in descent.profile) < _EVEN
        profile = None if even else descent.profile
        trial = Trial(descent.layers, descent.strength, float("nan"), profile=profile)
        return [self.generate(self._scored(trial))]

    def other_strengths(self, best: Trial) -> list[Trial]:
        """Stronger, if there are refusals left to gain; and weaker, for as long as none are lost."""

        def at(factor: float) -> Trial:
            return self._scored(replace(best, strength=best.strength * factor))

        others = []
        if merit(best) < _SATURATED:
            # Cross-entropy weighs every token alike; to tip the first ones often takes a little more. Where
            # it rises steeply, though, the text is falling apart.
            stronger = at(_STRONGER)
            if self.unsteered - stronger.cross_entropy > _COHERENT * (self.unsteered - best.cross_entropy):
                others.append(self.generate(stronger))
        aim = max(map(merit, [best, *others])) - TOLERANCE
        for step in range(1, _MOST_STEPS + 1):
            weaker = self.generate(at(_WEAKER**step))
            others.append(weaker)
            if merit(weaker) < aim:
                break
        return others

    def below(self, best: Trial) -> tuple[Trial, ...]:
        """Trials of blocks that begin below the gate, the best first: they show what it costs that steering
        begins at the gate. If the best of them is better than `best`, it generates too."""
        blocks = blocks_below(self._gate.last_layer, len(self._directions))
        if not blocks:
            return ()
        trials = walk(blocks, self.score, self.unsteered)
        trials.sort(key=lambda trial: trial.cross_entropy)
        if trials[0].cross_entropy < best.cross_entropy * (1 - _NOT_WORTH):
            trials[0] = self.generate(trials[0])
        return tuple(trials)

    def _scored(self, trial: Trial) -> Trial:
        value = self._harmful.cross_entropy(trial.additions(self._directions))
        self._report(f"{trial.words()}: cross-entropy {value:.3f}")
        return replace(trial, cross_entropy=value)
