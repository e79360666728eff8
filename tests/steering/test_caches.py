"""What the guard knows of a KV cache: its class, that it is the same object, and its count. Not its name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from inferaligner.models.kv_cache import cache_argument
from tests.support.steering_cases import Case, make_case
from tests.support.tiny_models import tiny_model

NAME = cache_argument(tiny_model("llama"))
EARLY: dict[str, Any] = {"reads": ((1, 0),), "steered": (1, 2)}
LATE: dict[str, Any] = {"reads": ((2, 0),), "steered": (0, 1, 3)}
PLANS = pytest.mark.parametrize("plan", [EARLY, LATE], ids=["early", "late"])


class OtherName(LlamaForCausalLM):
    """Takes its cache under a name that no version of transformers uses."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        inputs["memory"] = inputs.pop(NAME)
        return inputs

    def forward(
        self, input_ids: Any = None, attention_mask: Any = None, position_ids: Any = None, memory: Any = None,
        **rest: Any,
    ) -> Any:  # fmt: skip
        return super().forward(input_ids, attention_mask, position_ids, **{NAME: memory}, **rest)


class OtherObject(LlamaForCausalLM):
    """Goes on with a copy of its cache in every pass, so that no two passes share one."""

    def prepare_inputs_for_generation(self, *args: Any, **kwargs: Any) -> Any:
        inputs = super().prepare_inputs_for_generation(*args, **kwargs)
        return {**inputs, NAME: copy.deepcopy(inputs[NAME])}


def case_of(kind: type[LlamaForCausalLM], plan: dict[str, Any]) -> Case:
    usual = tiny_model("llama")
    model: Any = kind(usual.config).eval()
    model.load_state_dict(usual.state_dict())
    return make_case(model=model, **plan)


@PLANS
@pytest.mark.parametrize("kind", [OtherName, OtherObject])
def test_the_same_answers(kind: type[LlamaForCausalLM], plan: dict[str, Any]) -> None:
    usual, case = make_case(**plan), case_of(kind, plan)
    with usual.guard():
        expected = usual.logits()
    bare = case.logits()
    with case.guard() as guard:
        found = case.logits()
        assert [decision.open for decision in guard.decisions] == list(case.opens)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for row in case.closed_rows:
        assert torch.equal(found[row], bare[row])
    for row in case.open_rows:
        assert not torch.allclose(found[row], bare[row], atol=1e-2)


@pytest.mark.parametrize("name", sorted({NAME, "past_key_values"}))
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_both_names_in_calls_of_ones_own(name: str) -> None:
    """The older one is deprecated where there is a newer one, and goes on working until it is removed."""
    case = make_case()
    batch = case.batch(rows=[0, 1])
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 1, dtype=torch.long)], dim=1)

    def step() -> torch.Tensor:
        cache = DynamicCache(config=case.model.config)
        with torch.no_grad():
            case.model(**batch, **{name: cache})
            logits: torch.Tensor = case.model(
                torch.full((2, 1), 5), attention_mask=mask, **{name: cache}
            ).logits
        return logits

    bare = step()
    with case.guard():
        steered = step()
    assert torch.equal(steered[1], bare[1])
    assert not torch.allclose(steered[0], bare[0], atol=1e-2)
