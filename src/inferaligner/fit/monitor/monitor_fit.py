"""Fits the answer monitor: weights from some answers, the threshold from others, figures from a third part.

1. answers to harmful and harmless fitting prompts -> direction, layer, window (`monitor_choice.py`)
2. answers to ordinary prompts that took no part in 1, and to the user's own -> bias, by the order statistic
   of each answer's highest running score (`fit/operating_point/threshold.py`): one answer is one draw
3. answers to the test part -> figures

All answers are the bare target's own, greedy, of up to `monitor_tokens` tokens. The bound holds for
such answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from inferaligner.errors import CalibrationError
from inferaligner.fit.context import FitContext
from inferaligner.fit.monitor.answer_streams import answer_streams
from inferaligner.fit.monitor.monitor_choice import LabelledAnswers, choose_monitor, highest
from inferaligner.fit.operating_point.benign_traffic import stored
from inferaligner.fit.operating_point.threshold import Rank, promised_threshold, share
from inferaligner.fit.samples import Sample, Samples, Sort
from inferaligner.method.activations import record_activations
from inferaligner.method.decision import opens
from inferaligner.method.gate import GuidanceGate
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.models.anatomy import dissect
from inferaligner.prompts.chat import context_length, encode_chats
from inferaligner.prompts.images import Prompt, key_of
from inferaligner.statistics.intervals import clopper_pearson, smallest_sample
from inferaligner.statistics.stored_sample import StoredSample
from inferaligner.storage.operating_point_record import OperatingPoint, TrafficRecord

# Prompts that are answered, at most: to fit on, by sort; to calibrate a traffic on; of the test part.
_FITTED: dict[Sort, int] = {"harmful": 200, "ordinary": 160, "twin": 60, "lookalike": 40}
_CALIBRATED = 400
_TESTED = 150
_CANDIDATES_KEPT = 12
CONTRAST = "contrast set"


def fit_monitor(
    context: FitContext, gate: GuidanceGate, steered: Sequence[int]
) -> tuple[AnswerMonitor, dict[str, Any]]:
    """Fits the monitor.

    Args:
        gate: at its operating point; figures on harmful prompts count the prompts that it misses.
        steered: the steered layers. The monitor's layer is not above the first of them, so that the token
            that opens a row is the first to be steered.

    Returns:
        The monitor, and its figures for the artifact.

    Raises:
        CalibrationError: too few prompts that the target answers with any text.
    """
    target, options = context.target, context.options
    limit, _ = context.limits()
    fitting, calibrating = split_for_monitor(context.samples)
    layers = monitor_layers(min(steered), dissect(target.model).depth)
    prompts = [sample.prompt for sample in fitting]
    streams = _streams(context, prompts, layers, "monitor: answers to fit on")
    monitor, trials = choose_monitor(LabelledAnswers(tuple(fitting), tuple(streams), layers), limit)
    del streams

    def score(prompts: Sequence[Prompt], stage: str) -> list[float]:
        """The highest running score of each answer, without the bias."""
        answers = _streams(context, prompts, (monitor.layer,), stage, monitor)
        return [float(top) for top in highest(answers, monitor.window)]

    traffic = {
        CONTRAST: score([sample.prompt for sample in calibrating], "monitor: answers to ordinary prompts")
    }
    for name, own in context.benign.items():
        traffic[name] = score(_some(own, _CALIBRATED), f"monitor: answers to {name}")
    monitor, point = settle_monitor(monitor, traffic, limit, options.confidence)
    for name, record in point.traffic.items():
        if not record.promised:
            context.progress.note(
                f"monitor, {name}: {record.n} answers allow a promise of {share(record.bound)} at best, not "
                f"of {share(limit)}; {smallest_sample(limit, 1.0 - options.confidence)} are needed."
            )
    return monitor, {
        "tokens": options.monitor_tokens,
        "candidates": [trial.row() for trial in trials[:_CANDIDATES_KEPT]],
        "tried": len(trials),
        "operating_point": stored(point),
        "held_out": _held_out(context, gate, monitor, score),
    }


def settle_monitor(
    monitor: AnswerMonitor, traffic: Mapping[str, Sequence[float]], max_false_open: float, confidence: float
) -> tuple[AnswerMonitor, OperatingPoint]:
    """Puts the bias where the promise to every traffic holds. `traffic`: highest running scores by name."""
    threshold, ranks = promised_threshold(traffic, max_false_open, confidence)
    # By more than the sums of two ways of decoding are apart: an answer that *is* the threshold stays closed.
    moved = monitor.with_bias(-threshold - 1e-4 * max(1.0, abs(threshold)))
    point = OperatingPoint(
        max_false_open=max_false_open,
        confidence=confidence,
        rule="traffic",
        traffic={name: _describe(scores, moved, ranks[name]) for name, scores in traffic.items()},
    )
    return moved, point


def split_for_monitor(samples: Samples) -> tuple[list[Sample], list[Sample]]:
    """Prompts whose answers make the weights, and ordinary ones, of other contents, for the threshold.

    Raises:
        CalibrationError: too few ordinary prompts for both.
    """
    ordered = sorted(samples.fitting, key=lambda sample: _draw(key_of(sample.prompt)))
    # Some lists have no ordinary prompts: then what is harmless stands for them.
    labelled = any(sample.ordinary for sample in ordered)
    ordinary = [s for s in ordered if (s.ordinary if labelled else not s.harmful)]
    # Content by content, so that the cut goes through one of them at most.
    ordinary.sort(key=lambda sample: _draw(sample.content))
    first = ordinary[: min(_FITTED["ordinary"], len(ordinary) // 2)]
    contents = {sample.content for sample in first}
    calibrating = [s for s in ordinary if s.content not in contents and not s.wrapped][:_CALIBRATED]
    if not calibrating:
        raise CalibrationError(
            f"{len(ordinary)} harmless prompts are too few to fit a monitor and to set its threshold. Give "
            "more, or fit without `monitor`."
        )
    fitting = first + [s for s in ordered if s.harmful][: _FITTED["harmful"]]
    if labelled:
        for sort in ("twin", "lookalike"):
            fitting += [s for s in ordered if s.sort == sort][: _FITTED[sort]]
    return fitting, calibrating


def monitor_layers(first_steered: int, depth: int) -> tuple[int, ...]:
    """The layers that are tried: the first steered one, and two below it."""
    step = max(1, depth // 10)
    return tuple(sorted({max(0, first_steered - back * step) for back in range(3)}))


def _streams(
    context: FitContext,
    prompts: Sequence[Prompt],
    layers: Sequence[int],
    stage: str,
    monitor: AnswerMonitor | None = None,
) -> list[Tensor]:
    """The residual stream of each answer `[tokens, layers, width]`; with a monitor, its scores `[tokens]`."""
    answers: list[Tensor] = [torch.empty(0)] * len(prompts)
    with context.progress.stage(stage, len(prompts)) as advance:
        for batch in answer_streams(
            context.target.model,
            context.target.tokenizer,
            prompts,
            layers=layers,
            tokens=context.options.monitor_tokens,
            system=context.options.system,
        ):
            values = batch.values if monitor is None else monitor.token_scores(batch.values[:, :, 0])
            for place, row in enumerate(batch.rows):
                answers[row] = values[place, : int(batch.lengths[place])].clone()
            advance(len(batch.rows))
    return answers


def _held_out(
    context: FitContext,
    gate: GuidanceGate,
    monitor: AnswerMonitor,
    score: Callable[[Sequence[Prompt], str], list[float]],
) -> dict[str, Any]:
    """Open rates on the test part: answers to ordinary prompts, and to harmful ones that the gate missed."""
    test = context.samples.test
    groups = {
        "answers to ordinary prompts": (
            [s.prompt for s in test if s.ordinary] or [s.prompt for s in test if not s.harmful]
        ),
        "answers to harmful prompts that the gate missed": _closed(
            context, gate, [s.prompt for s in test if s.harmful and not s.wrapped]
        ),
    }
    figures: dict[str, Any] = {}
    for name, prompts in groups.items():
        if prompts:
            opened = [opens(top + monitor.bias) for top in score(_some(prompts, _TESTED), f"monitor: {name}")]
            figures[name] = asdict(clopper_pearson(sum(opened), len(opened)))
    return figures


def _closed(context: FitContext, gate: GuidanceGate, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that do not open the gate."""
    if not prompts:
        return []
    target, system = context.target, context.options.system
    ids = encode_chats(
        target.tokenizer, prompts, system=system, max_length=context_length(target.model.config)
    )
    recorded = record_activations(target.model, ids, layers=gate.layers, offsets=gate.offsets)
    decisions = gate.decide(gate.scores(recorded.values, recorded.layers, recorded.offsets))
    return [prompt for prompt, decision in zip(prompts, decisions, strict=True) if not decision.open]


def _some(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """A fixed draw of at most so many."""
    return sorted(prompts, key=lambda prompt: _draw(key_of(prompt)))[:most]


def _draw(text: str) -> bytes:
    return hashlib.sha256(f"monitor {text}".encode("utf-8", "replace")).digest()


def _describe(scores: Sequence[float], monitor: AnswerMonitor, rank: Rank) -> TrafficRecord:
    return TrafficRecord(
        n=len(scores),
        open=sum(opens(score + monitor.bias) for score in scores),
        bound=rank.bound,
        promised=rank.promised,
        origin="held-out",
        quantiles=tuple(float(f"{value:.7g}") for value in StoredSample.of(scores).quantiles),
    )
