"""Data of the playground's chart: a prompt's projections by layer, beside those of the shipped prompts."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from inferaligner.aligner import Aligner
from inferaligner.method.activations import record_activations
from inferaligner.method.vectors import unit
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.server.engine.engine import Engine
from inferaligner.server.engine.jobs import EnginePrompt

PER_CLASS = 48
_BATCH = 8
_SHARES = (0.1, 0.25, 0.5, 0.75, 0.9)


class PromptProjection:
    """Projections of prompts on the target's own vectors (the unit SRV) after every layer.

    They are scaled per layer: the shipped harmless prompts have the mean 0, the harmful ones the mean 1.
    """

    def __init__(self, engine: Engine, model: Any, tokenizer: Any) -> None:
        self._engine = engine
        self._model = model
        self._tokenizer = tokenizer
        self._directions = unit(engine.aligner.artifact.srv)
        self._reference: tuple[Tensor, Tensor] | None = None  # projections [prompts, layers]
        self._lock = Lock()

    def of(self, prompt: EnginePrompt) -> dict[str, Any]:
        """Computes the data of a prompt's chart; blocks until the engine has run the prompt.

        The first call also runs the shipped prompts.
        """
        with self._lock:
            harmful, harmless = self._references()
            end = len(prompt.tokens) if prompt.turn_end is None else prompt.turn_end
            # A prompt with pictures cannot be cut at the turn's end: a processor takes whole prompts alone.
            (own,) = self._project([prompt.seen if prompt.seen is not None else list(prompt.tokens[:end])])
        low, high = harmless.mean(0), harmful.mean(0)
        width = torch.where((high - low).abs() < 1e-9, 1.0, high - low)

        def scaled(values: Tensor) -> Tensor:
            return (values - low) / width

        return {
            "layers": list(range(len(own))),
            "prompt": _rounded(scaled(own)),
            "shares": list(_SHARES),
            "harmful": [_rounded(row) for row in _quantiles(scaled(harmful))],
            "harmless": [_rounded(row) for row in _quantiles(scaled(harmless))],
            "prompts_per_class": len(harmful),
        }

    def _references(self) -> tuple[Tensor, Tensor]:
        if self._reference is None:
            samples = load_contrast_set().part("test", wrapped=False)
            system = self._engine.aligner.artifact.provenance.system_prompt
            projections = []
            for harmful in (True, False):
                kind = "plain" if harmful else "benign"  # not the harmless look-alikes of harmful prompts
                texts = [one.text for one in samples if one.harmful == harmful and one.kind == kind]
                step = max(1, len(texts) // PER_CLASS)
                ids = encode_chats(self._tokenizer, texts[::step][:PER_CLASS], system=system)
                # In small batches, so that running requests wait for one batch at most.
                parts = [self._project(ids[at : at + _BATCH]) for at in range(0, len(ids), _BATCH)]
                projections.append(torch.cat(parts))
            self._reference = (projections[0], projections[1])
        return self._reference

    def _project(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Projections `[prompts, layers]`."""
        recorded = self._engine.call(lambda: record_activations(self._model, ids)).result()
        return (recorded.at().float() * self._directions).sum(-1)


def aligner_card(aligner: Aligner) -> dict[str, Any]:
    """The artifact as JSON, for `GET /inferaligner` and the playground."""
    artifact = aligner.artifact
    held_out = artifact.calibration.get("held_out") or {}
    point = artifact.operating_point
    scores = artifact.calibration.get("held_out_scores") or {}
    return {
        "sha256": artifact.digest(),
        "target": artifact.provenance.target.spec,
        "aligned": artifact.provenance.guide,
        "created": artifact.provenance.created,
        "gate": artifact.gate.kind,
        "reads": [[read.layer, read.offset] for read in artifact.gate.reads],
        "bias": artifact.gate.bias,
        "steered_layers": list(artifact.steering.layers),
        "strength": artifact.steering.strength,
        "positions": artifact.steering.positions,
        "monitor": None
        if artifact.monitor is None
        else {"layer": artifact.monitor.layer, "window": artifact.monitor.window},
        "held_out_open": held_out.get("open") or {},
        "auroc": held_out.get("auroc"),
        "traffic": {}
        if point is None
        else {
            name: [value + artifact.gate.bias for value in record.quantiles]
            for name, record in point.traffic.items()
        },
        "held_out_scores": {
            name: [round(score + artifact.gate.bias, 4) for score in values]
            for name, values in scores.items()
        },
    }


def operating_point(aligner: Aligner) -> dict[str, Any] | None:
    """The operating point of the gate as JSON; None where the artifact has none."""
    point = aligner.artifact.operating_point
    return (
        None
        if point is None
        else {
            "max_false_open": point.max_false_open,
            "confidence": point.confidence,
            "rule": point.rule,
            "promised": point.promised,
        }
    )


def _quantiles(values: Tensor) -> Tensor:
    return torch.quantile(values, torch.tensor(_SHARES), dim=0)


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
