"""Remote code of the time before cache classes, such as InternLM's and the first Qwen's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from inferaligner.errors import SteeringError
from tests.support.legacy_model import LegacyForCausalLM
from tests.support.odd_model import OddConfig
from tests.support.steering_cases import Case, make_case


def legacy_case(**plan: Any) -> Case:
    torch.manual_seed(0)
    return make_case(model=LegacyForCausalLM(OddConfig(layout="h")).eval(), **plan)


def test_one_pass() -> None:
    case = legacy_case()
    bare, uncached = case.logits(), case.generate(use_cache=False)
    assert torch.equal(case.generate(), uncached)
    with case.guard() as guard:
        steered, tokens = case.logits(), case.generate()
        assert [decision.open for decision in guard.decisions] == list(case.opens)
        alone = [case.generate(rows=[row])[0] for row in range(4)]
    for row in case.closed_rows:
        assert torch.equal(steered[row], bare[row])
    for row in case.open_rows:
        assert not torch.allclose(steered[row], bare[row], atol=1e-2)
    assert torch.equal(tokens, torch.stack(alone))
    assert torch.equal(case.logits(), bare)


def test_what_cannot_be_done_is_refused() -> None:
    case = legacy_case(reads=((2, 0),), steered=(1,))
    with case.guard(), pytest.raises(SteeringError, match="KV cache tuple cannot be replayed"):
        case.generate()
    case = legacy_case()
    batch = case.batch()
    with case.guard(), torch.no_grad():
        made = case.model(**batch, use_cache=True).past_key_values
        mask = torch.cat([batch["attention_mask"], torch.ones(4, 1, dtype=torch.long)], dim=1)
        with pytest.raises(SteeringError, match="Unknown KV cache tuple"):
            case.model(torch.full((4, 1), 5), attention_mask=mask, past_key_values=made, use_cache=True)
