"""Fits the gate: candidates compared, weights, bias at the operating point, held-out figures.

1. target activations of the labelled prompts -> the best candidate, by cross-validation (`gate_choice.py`)
2. out-of-fold scores of ordinary prompts, and scores of the user's benign traffic -> bias
3. scores of the test part -> figures
4. the same contents behind begun answers and as raw text -> the end gate (`end_gate.py`)
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from inferaligner.fit.context import FitContext
from inferaligner.fit.gate.end_gate import fit_end_gate
from inferaligner.fit.gate.gate_choice import (
    GateTrial,
    build_gate,
    choose_gate,
    gate_layers,
    number_of_trials,
    out_of_fold,
    paper_gate,
)
from inferaligner.fit.gate.held_out import held_out_figures, held_out_groups
from inferaligner.fit.operating_point.batch_shift import PROMPTS, batch_shift, batch_shift_figures
from inferaligner.fit.operating_point.benign_traffic import settle, stored
from inferaligner.fit.operating_point.contrast_traffic import contrast_traffic
from inferaligner.fit.recording import record_prompts, record_tokens
from inferaligner.method.activations import Activations
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GuidanceGate
from inferaligner.models.anatomy import dissect
from inferaligner.prompts.chat import context_length, encode_chats, template_suffix
from inferaligner.prompts.images import Prompt


@dataclass(frozen=True)
class FittedGate:
    """The gate at its operating point.

    `figures` are for the artifact. `held_out` are out-of-fold scores of `samples.fitting` at the operating
    point, positive = open; empty with the paper's gate.
    """

    gate: GuidanceGate
    end_gate: EndGate | None
    figures: dict[str, Any]
    held_out: list[float]


@dataclass(frozen=True)
class _Candidate:
    """The chosen gate at the plain quantile of ordinary prompts, and the comparison that chose it."""

    gate: GuidanceGate
    trials: list[GateTrial]
    held_out: list[float]


def fit_gate(context: FitContext) -> FittedGate:
    """Chooses and fits the gate.

    Raises:
        CalibrationError: too few prompts to hold some out, or no usable score of a benign prompt.
    """
    samples, options = context.samples, context.options
    limit, ordinary_limit = context.limits()
    layers, offsets = _places(context)

    def record(prompts: Sequence[Prompt], stage: str) -> Activations:
        return record_prompts(context, context.target, prompts, stage, layers=layers, offsets=offsets)

    chosen = _choose(context, record([s.prompt for s in samples.fitting], "target: gate activations"))
    gate = chosen.gate

    def score(prompts: Sequence[Prompt], stage: str) -> list[float]:
        recorded = record(prompts, stage)
        return [float(s) for s in gate.scores(recorded.values, recorded.layers, recorded.offsets)]

    contrast = contrast_traffic(chosen.held_out, samples.fitting) if chosen.held_out else {}
    own = {name: score(prompts, f"benign: {name}") for name, prompts in context.benign.items()}
    before, shift = gate.bias, _batch_shift(context, gate)
    gate, point, own = settle(
        gate,
        contrast,
        own,
        max_false_open=limit if context.benign else ordinary_limit,
        ordinary_limit=ordinary_limit,
        confidence=options.confidence,
        # Its bias is the paper's, unless a limit for the user's own traffic was given with it.
        paper=options.paper and (options.max_false_open is None or not context.benign),
        allowance=shift or 0.0,
    )
    tested = score([s.prompt for s in samples.test], "held-out prompts") if samples.test else []
    figures = {
        "max_false_open": point.max_false_open,
        "gates": [trial.row() for trial in chosen.trials],
        "operating_point": stored(point),
        "held_out": held_out_figures(tested, samples.test, own),
        # Without the bias, so that the open rates can be counted again at another operating point.
        "held_out_scores": {
            name: [float(f"{value - gate.bias:.7g}") for value in values]
            for name, values in held_out_groups(tested, samples.test).items()
        },
    }
    if shift is not None:
        pooled = next(iter(contrast.values()), [])
        figures["batch_shift"] = batch_shift_figures(shift, [score + gate.bias - before for score in pooled])
    end_gate: EndGate | None = None
    if not options.paper:
        end_gate, figures["ends"] = fit_end_gate(
            gate,
            context.target.tokenizer,
            samples.fitting,
            samples.test,
            lambda ids, stage: record_tokens(
                context, context.target, ids, stage, layers=gate.layers, offsets=(0,)
            ),
            max_false_open=ordinary_limit,
            system=options.system,
            limit=context_length(context.target.model.config),
        )
    return FittedGate(gate, end_gate, figures, [value + gate.bias - before for value in chosen.held_out])


def _places(context: FitContext) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The layers and the token positions (counted back from the last) that candidates may read."""
    options = context.options
    depth = dissect(context.target.model).depth
    suffix = len(template_suffix(context.target.tokenizer))
    # The last token, the one that closes the user's turn, and the next: the others add little to them.
    offsets = (0,) if options.paper else tuple(sorted({0, max(0, suffix - 2), suffix - 1}))
    if options.gate_layer is not None:
        return (options.gate_layer,), offsets
    return tuple(range(depth)) if options.paper else gate_layers(depth), offsets


def _choose(context: FitContext, activations: Activations) -> _Candidate:
    samples, layer = context.samples.fitting, context.options.gate_layer
    if context.options.paper:
        rows = [row for row, s in enumerate(samples) if s.group == "pairs" and not s.wrapped]
        gate = paper_gate(activations.take(rows), [samples[row] for row in rows], layer)
        return _Candidate(gate, [], [])
    with context.progress.stage("gates compared", number_of_trials(activations, layer)) as advance:
        chosen, trials = choose_gate(
            activations, samples, max_false_open=context.limits()[1], layer=layer, advance=advance
        )
    return _Candidate(build_gate(chosen, activations, samples), trials, out_of_fold(chosen, samples))


def _batch_shift(context: FitContext, gate: GuidanceGate) -> float | None:
    """How far scores move with the batch; None without a text, or where an engine makes the scores."""
    if context.target.recorder is not None:
        return None
    fitting = context.samples.fitting
    texts = [s.text for s in fitting if not s.harmful and not s.wrapped and s.shown is None]
    if not texts:
        return None
    texts.sort(key=lambda text: hashlib.sha256(text.encode()).digest())
    ids = encode_chats(context.target.tokenizer, texts[:PROMPTS], system=context.options.system)
    return batch_shift(context.target.model, ids, gate)
