from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from inferaligner.models.weight_digest import weight_digest
from tests.support.tiny_models import FAMILIES, tiny_model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_one_model_one_digest(family: str) -> None:
    assert weight_digest(tiny_model(family)) == weight_digest(tiny_model(family))
    assert weight_digest(tiny_model(family)) != weight_digest(tiny_model(family, seed=1))


def test_the_precision_it_is_loaded_in_does_not_matter() -> None:
    checkpoint = tiny_model().to(torch.bfloat16)
    assert weight_digest(checkpoint) == weight_digest(tiny_model()) == weight_digest(checkpoint.float())


def lora(seed: int) -> Any:
    torch.manual_seed(seed)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    return peft.get_peft_model(tiny_model(), settings)


def test_an_adapter_that_was_trained_on() -> None:
    digests = {weight_digest(lora(seed)) for seed in (0, 0, 1)}
    merged = {weight_digest(lora(seed).merge_and_unload()) for seed in (0, 0, 1)}
    assert len(digests) == len(merged) == 2
    assert weight_digest(tiny_model()) not in digests | merged


def test_a_small_step_of_training_on_a_large_weight() -> None:
    """Rounded and sampled as they are, some of the numbers move."""
    model = tiny_model(intermediate_size=4096)
    before = weight_digest(model)
    with torch.no_grad():
        model.model.layers[2].mlp.up_proj.weight *= 1 + 1e-4
    assert weight_digest(model) != before


def test_weights_that_are_elsewhere_count_by_their_shape() -> None:
    there = weight_digest(tiny_model().to("meta"))
    assert there == weight_digest(tiny_model(seed=1).to("meta"))
    assert there != weight_digest(tiny_model(intermediate_size=32).to("meta"))


@pytest.mark.extras
def test_quantised_weights() -> None:
    torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed: make test-extras")

    def quantised(seed: int) -> Any:
        model = tiny_model(seed=seed).to(torch.bfloat16)
        torchao.quantize_(model, torchao.Int8WeightOnlyConfig())
        return model

    assert weight_digest(quantised(0)) == weight_digest(quantised(0)) != weight_digest(quantised(1))
