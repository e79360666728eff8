import math

import numpy as np
import pytest
import torch

from inferaligner.errors import ArtifactError, CalibrationError
from inferaligner.method.decision import Decision
from inferaligner.method.gate import GateRead, GuidanceGate


def gate(*reads: tuple[int, int], bias: float = 0.0) -> GuidanceGate:
    weights = torch.arange(1.0, 1 + 4 * len(reads)).reshape(len(reads), 4)
    return GuidanceGate("test", tuple(GateRead(*read) for read in reads), weights, bias)


def test_places() -> None:
    several = gate((3, 1), (0, 0), (3, 0), (2, 4))
    assert several.layers == (0, 2, 3)
    assert several.offsets == (0, 1, 4)
    assert several.last_layer == 3
    assert GateRead(5) == GateRead(5, 0)


def test_scores_against_numpy() -> None:
    """Recorded places stand in any order, and there may be more of them than are read."""
    several = gate((3, 1), (0, 0), bias=-2.5)
    activations = torch.randn(6, 3, 2, 4)
    at = activations.numpy().astype(np.float64)
    expected = at[:, 0, 0] @ [1, 2, 3, 4] + at[:, 2, 1] @ [5, 6, 7, 8] - 2.5
    scores = several.scores(activations, layers=[3, 1, 0], offsets=[1, 0])
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert several.scores(activations.to(torch.bfloat16), [3, 1, 0], [1, 0]).dtype == torch.float32


@pytest.mark.parametrize(("layers", "offsets"), [([3, 1], [0, 1]), ([3, 0], [0, 2])])
def test_places_that_were_not_recorded(layers: list[int], offsets: list[int]) -> None:
    with pytest.raises(CalibrationError, match="but only layers"):
        gate((3, 1), (0, 0)).scores(torch.zeros(1, 2, 2, 4), layers, offsets)


def test_positive_is_open_and_nan_opens() -> None:
    decisions = gate((0, 0)).decide(torch.tensor([0.5, 0.0, -0.5, 1e-30, math.inf, -math.inf]))
    assert [decision.open for decision in decisions] == [True, False, False, True, True, False]
    assert decisions[0] == Decision(0.5, True)
    assert gate((0, 0)).decide(torch.tensor([math.nan]))[0].open


def test_a_larger_bias_is_stricter() -> None:
    activations = torch.randn(50, 1, 1, 4)
    opened = [
        sum(
            d.open
            for d in gate((0, 0))
            .with_bias(bias)
            .decide(gate((0, 0), bias=bias).scores(activations, [0], [0]))
        )
        for bias in (-100.0, -3.0, 0.0, 3.0, 100.0)
    ]
    assert opened == sorted(opened)
    assert opened[0] == 0
    assert opened[-1] == 50
    assert len(set(opened)) > 3
    first = gate((0, 0))
    assert first.with_bias(2.0).bias == 2.0
    assert first.bias == 0.0


@pytest.mark.parametrize(
    ("reads", "weights", "bias"),
    [
        ((), torch.zeros(0, 4), 0.0),
        ((GateRead(0),), torch.zeros(4), 0.0),
        ((GateRead(0),), torch.zeros(2, 4), 0.0),
        ((GateRead(0), GateRead(0, 0)), torch.zeros(2, 4), 0.0),
        ((GateRead(-1),), torch.zeros(1, 4), 0.0),
        ((GateRead(0, -1),), torch.zeros(1, 4), 0.0),
        ((GateRead(0),), torch.full((1, 4), math.nan), 0.0),
        ((GateRead(0),), torch.full((1, 4), math.inf), 0.0),
        ((GateRead(0),), torch.zeros(1, 4), math.nan),
        ((GateRead(0),), torch.zeros(1, 4), -math.inf),
    ],
)
def test_unusable_gates(reads: tuple[GateRead, ...], weights: torch.Tensor, bias: float) -> None:
    with pytest.raises(ArtifactError):
        GuidanceGate("test", reads, weights, bias)
