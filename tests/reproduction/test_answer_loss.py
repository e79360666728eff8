"""The loss of answers alone is that of the model's own forward, in pieces or not, and teaches the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from reproduction.answer_loss import answer_loss, head_says_all, on_answers_alone
from torch import Tensor

from reproduction import answer_loss as module
from tests.support.tiny_models import tiny_model

_IDS = torch.randint(5, 60, (3, 12), generator=torch.Generator().manual_seed(1))
_MASK = (torch.arange(12) < torch.tensor([12, 9, 7])[:, None]).long()
_SAID = (torch.arange(12) >= torch.tensor([4, 6, 6])[:, None]) & _MASK.bool()
_LABELS = _IDS.masked_fill(~_SAID, -100)


def _gradients(model: Any, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("piece", [512, 4, 1])
@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_it_is_the_models_own_loss(family: str, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PIECE", piece)
    model = tiny_model(family)
    expected = model(input_ids=_IDS, attention_mask=_MASK, labels=_LABELS).loss
    ours = answer_loss(model, _IDS, _MASK, _SAID, bf16=False)
    assert torch.allclose(ours, expected, atol=1e-5)
    assert torch.allclose(_gradients(model, ours), _gradients(model, expected), atol=1e-5)


def test_a_share_of_a_larger_batch_is_divided_by_all_of_its_tokens() -> None:
    model = tiny_model("llama")
    whole = answer_loss(model, _IDS, _MASK, _SAID, bf16=False)
    shared = answer_loss(model, _IDS, _MASK, _SAID, bf16=False, count=torch.tensor(100))
    assert torch.allclose(shared * 100, whole * int(_SAID.sum()))


def test_a_trainer_takes_it_through_an_adapter() -> None:
    torch.manual_seed(0)
    adapted = get_peft_model(tiny_model("llama"), LoraConfig(r=2, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)

    class Plain:
        class args:
            bf16 = False

        class accelerator:
            unwrap_model = staticmethod(lambda model: model)

    inputs = {"input_ids": _IDS, "attention_mask": _MASK, "labels": _LABELS}
    loss, _ = on_answers_alone(Plain)().compute_loss(adapted, inputs, return_outputs=True)
    expected = adapted(**inputs).loss
    assert torch.allclose(loss, expected, atol=1e-5)
    assert torch.allclose(_gradients(adapted, loss), _gradients(adapted, expected), atol=1e-5)


@pytest.mark.parametrize(("changes", "plain"), [({}, True), ({"final_logit_softcapping": 30.0}, False)])
def test_logits_that_are_capped_are_left_to_the_library(changes: dict[str, float], plain: bool) -> None:
    model = tiny_model("llama")
    for name, value in changes.items():
        setattr(model.config, name, value)
    assert head_says_all(model) is plain
