from collections import namedtuple
from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput

from inferaligner.errors import SteeringError
from inferaligner.models.residual_stream import residual, with_residual

STREAM = torch.zeros(2, 3, 4)
OTHER = torch.ones(2, 3, 4)
Pair = namedtuple("Pair", "hidden cache")


@pytest.mark.parametrize("output", [STREAM, (STREAM,), (STREAM, None, "cache"), [STREAM, 1], Pair(STREAM, 1)])
def test_stream_is_found_and_replaced(output: Any) -> None:
    assert residual(output) is STREAM
    replaced = with_residual(output, OTHER)
    assert type(replaced) is type(output)
    assert residual(replaced) is OTHER
    assert residual(output) is STREAM, "the output that was given must not change"
    if not isinstance(output, torch.Tensor):
        assert list(replaced[1:]) == list(output[1:])


@pytest.mark.parametrize(
    "output",
    [
        None,
        (),
        [],
        (None, STREAM),
        "text",
        {"hidden_states": STREAM},
        BaseModelOutput(last_hidden_state=STREAM),
        torch.zeros(6, 4),  # rows and tokens in one
        torch.zeros(4, 2, 3, 4),  # several streams
        (torch.zeros(2, 3),),
        torch.zeros(2, 3, 4, dtype=torch.int64),
    ],
)
def test_anything_else_is_refused(output: Any) -> None:
    with pytest.raises(SteeringError, match="expected"):
        residual(output)
    with pytest.raises(SteeringError, match="expected"):
        with_residual(output, OTHER)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1, 3, 4),
        torch.zeros(2, 3, 5),
        torch.zeros(2, 3, 4, dtype=torch.float64),
        torch.zeros(2, 3, 4, device="meta"),
    ],
)
def test_replacement_of_another_kind_is_refused(tensor: torch.Tensor) -> None:
    with pytest.raises(SteeringError, match="expected the same of both"):
        with_residual((STREAM, None), tensor)
