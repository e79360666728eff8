import pytest
import torch

from inferaligner.errors import SteeringError
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.steering.plan import SteeringPlan


def gate(*layers: int) -> GuidanceGate:
    return GuidanceGate("test", tuple(GateRead(layer) for layer in layers), torch.ones(len(layers), 4), 0.0)


def test_layers_ascend() -> None:
    plan = SteeringPlan(gate(0), {5: torch.ones(4), 2: torch.ones(4), 3: torch.ones(4)})
    assert plan.layers == (2, 3, 5)


@pytest.mark.parametrize(
    ("read", "steered", "one_pass"),
    [
        ((2,), (3, 4), True),
        ((3,), (3, 4), True),
        ((4,), (3, 5), False),
        ((0, 4), (3,), False),
        ((0, 3), (3,), True),
    ],
)
def test_one_pass(read: tuple[int, ...], steered: tuple[int, ...], one_pass: bool) -> None:
    """The gate reads a layer before anything is added to it, so the same layer may do both."""
    assert SteeringPlan(gate(*read), {layer: torch.ones(4) for layer in steered}).one_pass is one_pass


@pytest.mark.parametrize(
    "additions",
    [{}, {1: torch.ones(1, 4)}, {1: torch.tensor([1.0, torch.nan])}, {1: torch.tensor([torch.inf])}],
)
def test_useless_vectors(additions: dict[int, torch.Tensor]) -> None:
    with pytest.raises(SteeringError):
        SteeringPlan(gate(0), additions)
