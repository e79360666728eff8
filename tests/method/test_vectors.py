import numpy as np
import pytest
import torch

from inferaligner.errors import CalibrationError
from inferaligner.method.vectors import cosine, mean_difference, unit


def test_mean_difference_against_numpy() -> None:
    harmful, harmless = torch.randn(7, 3, 16), torch.randn(5, 3, 16)
    expected = harmful.double().numpy().mean(0) - harmless.double().numpy().mean(0)
    difference = mean_difference(harmful, harmless)
    assert difference.dtype == torch.float32
    np.testing.assert_allclose(difference.numpy(), expected, rtol=1e-6, atol=1e-7)


def test_small_components_survive_bfloat16() -> None:
    """Beside a large constant, a sum in bfloat16 would lose a small difference."""
    harmless = torch.full((400, 1, 2), 256.0)
    harmful = harmless.clone()
    harmful[::4] += 2.0  # one step of bfloat16 at this size
    difference = mean_difference(harmful.to(torch.bfloat16), harmless.to(torch.bfloat16))
    assert torch.equal(difference, torch.full((1, 2), 0.5))


@pytest.mark.parametrize(
    ("harmful", "harmless", "told"),
    [
        ((4, 3), (4, 3), "harmful activations have shape"),
        ((4, 3, 8), (4, 3, 1, 8), "harmless activations have shape"),
        ((0, 3, 8), (4, 3, 8), "at least one prompt"),
        ((4, 3, 8), (4, 2, 8), "differ in .layers, width"),
        ((4, 3, 8), (4, 3, 9), "same model"),
    ],
)
def test_shapes(harmful: tuple[int, ...], harmless: tuple[int, ...], told: str) -> None:
    with pytest.raises(CalibrationError, match=told):
        mean_difference(torch.zeros(harmful), torch.zeros(harmless))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_numbers_that_are_none(bad: float) -> None:
    harmful = torch.zeros(3, 2, 4)
    harmful[1, 1, 2] = bad
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        mean_difference(harmful, torch.zeros(3, 2, 4))


def test_unit() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-15, 0.0]])
    assert torch.allclose(unit(vectors), torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))
    assert torch.allclose(unit(torch.randn(2, 3, 8)).norm(dim=-1), torch.ones(2, 3))


def test_cosine() -> None:
    first = torch.tensor([[1.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    second = torch.tensor([[5.0, 0.0], [1.0, -1.0], [-1.0, 0.0]])
    assert torch.allclose(cosine(first, second), torch.tensor([1.0, 0.0, -1.0]), atol=1e-7)
