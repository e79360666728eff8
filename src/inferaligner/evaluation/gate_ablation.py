"""Kinds of gates on the same prompts, without generating: AUROC and open rates.

Compared with the fitted gate: mean difference and whitening, at one layer, at several layers, and at several
tokens, all fitted here on a part of the contrast set at the fitted gate's false-open rate; the paper's gate;
and CAST's condition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace

from inferaligner.aligner import Aligner
from inferaligner.evaluation.methods.catalogue import lacking, make_methods
from inferaligner.evaluation.methods.gated import Gated
from inferaligner.evaluation.methods.method import Method, MethodContext
from inferaligner.evaluation.metrics import GATE_SUITE, HARMFUL_KINDS, ResultRow, rate_row, row
from inferaligner.fit.gate.builder import GateBuilder, MeanDifferenceGate, WhitenedGate
from inferaligner.fit.gate.gate_choice import SHRINKAGES, GateCrossValidation, build_gate, try_gate
from inferaligner.fit.progress import Progress
from inferaligner.fit.samples import Sample, samples_from_contrast
from inferaligner.method.activations import record_activations
from inferaligner.method.gate import GateRead
from inferaligner.prompts.chat import context_length, encode_chats
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.images import Prompt
from inferaligner.statistics.intervals import bootstrap_auroc

FITTED_ON = 1500
"""Prompts of the contrast set that these gates are fitted on; the fitted gate was fitted on all prompts."""


def gate_methods(context: MethodContext, progress: Progress) -> list[Method]:
    """The fitted gate, gates of every kind, and the paper's and CAST's if the aligner has their vectors."""
    aligner = context.need_aligner("ablation")
    artifact = aligner.artifact
    samples = _some(FITTED_ON)
    layers, offsets = artifact.gate.layers, artifact.gate.offsets
    ids = encode_chats(
        context.target.reader,
        [sample.text for sample in samples],
        system=context.system,
        max_length=context_length(context.target.model.config),
    )
    with progress.stage("target: activations", len(ids)) as advance:
        recorded = record_activations(
            context.target.model, ids, layers=layers, offsets=offsets, advance=advance
        )
    last, first = (GateRead(layers[-1], offsets[0]),), offsets[:1]
    several = tuple(GateRead(layer, offset) for layer in layers for offset in first)
    everywhere = tuple(GateRead(layer, offset) for layer in layers for offset in offsets)
    whitened = WhitenedGate(SHRINKAGES[0])
    kinds: dict[str, tuple[GateBuilder, tuple[GateRead, ...]]] = {
        f"mean difference, layer {layers[-1]}": (MeanDifferenceGate(), last),
        f"whitened, layer {layers[-1]}": (whitened, last),
        f"whitened, layers {_listed(layers)}": (whitened, several),
        f"whitened, layers {_listed(layers)}, {len(offsets)} tokens": (whitened, everywhere),
    }
    limit = float(artifact.calibration.get("max_false_open") or 0.02)
    made: list[Method] = [Gated("fitted", "the fitted gate", context, aligner)]
    tried = set()
    for name, (builder, reads) in kinds.items():
        # With one layer or one token, two kinds are the same gate.
        if (builder.name, reads) not in tried:
            tried.add((builder.name, reads))
            trial = try_gate(builder, GateCrossValidation(reads, recorded, samples), limit)
            gate = build_gate(trial, recorded, samples)
            made.append(Gated(name, name, context, Aligner(replace(artifact, gate=gate))))
    others = [name for name in ("paper", "cast") if lacking(name, artifact) is None]
    return [*made, *(method for method in make_methods(others, context) if method.gate is not None)]


def gate_figures(
    methods: Sequence[Method], suites: Mapping[str, tuple[str, Sequence[Prompt]]], progress: Progress
) -> list[ResultRow]:
    """AUROC and open rates of several gates; `suites` maps a name to its kind and prompts."""
    results: list[ResultRow] = []
    with progress.stage("gates", len(methods) * len(suites)) as advance:
        for method in methods:
            sides: dict[bool, list[float]] = {True: [], False: []}
            for suite, (kind, prompts) in suites.items():
                decisions = method.decide(prompts) or []
                sides[kind in HARMFUL_KINDS] += [decision.score for decision in decisions]
                results.append(rate_row(method.name, suite, "gate open", [d.open for d in decisions]))
                advance(1)
            if sides[True] and sides[False]:
                labels = [True] * len(sides[True]) + [False] * len(sides[False])
                area = bootstrap_auroc([*sides[True], *sides[False]], labels, draws=500)
                results.append(row(method.name, GATE_SUITE, "gate AUROC", asdict(area), None))
    return results


def _some(count: int) -> list[Sample]:
    """`count` prompts of the fitting part, the same in every run."""
    fitting = samples_from_contrast(load_contrast_set()).fitting
    return sorted(fitting, key=lambda sample: hashlib.sha256(sample.text.encode()).digest())[:count]


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))
