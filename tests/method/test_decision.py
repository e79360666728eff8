"""The rule by which a score opens, and the engines that must follow it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from inferaligner.method.decision import Decision, opens

SCORES = (-math.inf, -1.0, -0.0, 0.0, 1e-30, 1.0, math.inf, math.nan)
OPEN = (False, False, False, False, True, True, True, True)


def test_a_positive_score_and_nan_open() -> None:
    assert tuple(map(opens, SCORES)) == OPEN
    assert opens(torch.tensor(SCORES)).tolist() == list(OPEN)
    assert opens(np.array(SCORES)).tolist() == list(OPEN)


@pytest.mark.parametrize("shape", [(8,), (2, 4), (2, 2, 2)])
def test_tensors_keep_their_shape(shape: tuple[int, ...]) -> None:
    opened = opens(torch.tensor(SCORES).reshape(shape))
    assert opened.shape == shape and opened.dtype is torch.bool


def test_compiled_code_follows_the_rule() -> None:
    """The hooks call it inside of graphs that `torch.compile` makes."""
    compiled = torch.compile(lambda scores: opens(scores), backend="eager", fullgraph=True)
    assert compiled(torch.tensor(SCORES)).tolist() == list(OPEN)


def test_where_a_row_opened() -> None:
    assert Decision(1.0, True).opened_at == "prompt"
    assert Decision(-1.0, True, 3).opened_at == 3
    assert Decision(-1.0, False).opened_at is None
