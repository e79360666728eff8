"""How far a score moves with its batch, and the allowance that a promise makes for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inferaligner.fit.operating_point.batch_shift import PROMPTS, batch_shift, batch_shift_figures
from inferaligner.fit.operating_point.benign_traffic import settle
from inferaligner.fit.operating_point.recalibrate import recalibrate
from inferaligner.method.gate import GateRead, GuidanceGate
from tests.support.tiny_aligner import tiny_artifact
from tests.support.tiny_models import tiny_model, tiny_tokenizer

GATE = GuidanceGate("test", (GateRead(1), GateRead(2, 2)), torch.ones(2, 32), 0.0)


def prompts() -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(3, 320, (length,), generator=draw).tolist() for length in range(5, 5 + PROMPTS)]


def test_float32_is_all_but_still_and_bfloat16_is_not() -> None:
    shift = batch_shift(tiny_model(), prompts(), GATE)
    assert shift < 1e-4
    half = batch_shift(tiny_model().to(torch.bfloat16), prompts(), GATE)
    assert half >= shift


def test_what_a_batch_changes_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model whose activations depend on the number of rows."""
    model: Any = tiny_model()

    def moved(module: Any, inputs: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        hidden = hidden + (0.0 if hidden.shape[0] == 1 else 0.25)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    model.model.layers[2].register_forward_hook(moved)
    gate = GuidanceGate("test", (GateRead(2),), torch.eye(32)[:1], 0.0)
    assert batch_shift(model, prompts(), gate) == pytest.approx(0.25, abs=1e-4)


def test_figures_count_the_prompts_near_the_threshold() -> None:
    found = batch_shift_figures(0.5, [-2.0, -0.5, 0.1, 0.6])
    assert (found["near_threshold"], found["of"], found["largest_shift"]) == (2, 4, 0.5)


def test_a_promise_allows_for_it_and_the_contrast_set_does_not() -> None:
    own = {"desk": [50.0 - n for n in range(300)]}
    contrast = {"contrast set": [float(-n) for n in range(300)]}
    options: dict[str, Any] = {"max_false_open": 0.05, "confidence": 0.95}
    still, plain, _ = settle(GATE, {}, own, **options)
    promised = plain.traffic["desk"].open
    moved, point, scores = settle(GATE, {}, own, **options, allowance=0.25)
    assert moved.bias == pytest.approx(still.bias - 0.25, abs=1e-4)
    assert point.promised
    # Whatever batch they are computed in, no more of these prompts are open than the promise allows.
    assert sum(score + 0.25 > 0 for score in scores["desk"]) == promised > 0
    assert settle(GATE, contrast, {}, **options, allowance=0.25)[0].bias == GATE.bias


def test_moving_it_later_allows_for_it_too() -> None:
    artifact = tiny_artifact(tiny_model(), tiny_tokenizer())
    traffic = {"desk": [float(-n) for n in range(300)]}
    plain = recalibrate(artifact, traffic, max_false_open=0.05)
    known = tiny_artifact(
        tiny_model(),
        tiny_tokenizer(),
        calibration={**artifact.calibration, "batch_shift": {"largest_shift": 0.25}},
    )
    moved = recalibrate(known, traffic, max_false_open=0.05)
    assert moved.gate.bias == pytest.approx(plain.gate.bias - 0.25, abs=1e-4)
    # Scores that were made in service have it in them.
    served = recalibrate(known, traffic, max_false_open=0.05, source="scores")
    assert served.gate.bias == pytest.approx(plain.gate.bias)
