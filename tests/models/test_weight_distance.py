from __future__ import annotations

import pytest
import torch

from inferaligner.models.weight_distance import weight_distances
from tests.support.tiny_models import FAMILIES, tiny_model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_model_lies_on_itself(family: str) -> None:
    found = weight_distances(tiny_model(family), tiny_model(family))
    assert found and set(found.values()) == {0.0}
    assert {"decoder", "embedding"} <= set(found)


def test_a_known_move() -> None:
    model, other = tiny_model(), tiny_model()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.up_proj.weight *= 1.25
    found = weight_distances(model, other)
    assert found["mlp.up_proj"] == pytest.approx(0.25, rel=1e-5)
    assert found["self_attn.q_proj"] == 0.0 and found["embedding"] == 0.0
    other.requires_grad_(False)
    moved = sum(float(layer.mlp.up_proj.weight.square().sum()) for layer in other.model.layers)
    whole = sum(float(p.square().sum()) for p in other.model.layers.parameters())
    assert found["decoder"] == pytest.approx(0.25 * (moved / whole) ** 0.5, rel=1e-4)


def test_other_seeds_are_far_and_other_shapes_not_comparable() -> None:
    assert weight_distances(tiny_model(), tiny_model(seed=1))["self_attn.q_proj"] > 1
    assert weight_distances(tiny_model(), tiny_model(hidden_size=16)) == {}
    assert weight_distances(tiny_model(), tiny_model("gpt2")) == {}


def test_rounding_is_a_small_distance() -> None:
    found = weight_distances(tiny_model().to(torch.bfloat16), tiny_model())
    assert 0 < found["decoder"] < 0.005
