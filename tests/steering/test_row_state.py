"""Rows that join and leave a decoding batch keep their decisions, and touch nobody else's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from inferaligner.errors import SteeringError
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import SteeringPlan
from inferaligner.steering.row_state import CarriedRows
from tests.support.steering_cases import Case, make_case

STEPS = 5


def prefill(case: Case, rows: list[int]) -> tuple[Tensor, DynamicCache, Tensor]:
    """Logits `[rows, vocabulary]` of the last prompt tokens, the cache, and the mask."""
    batch, cache = case.batch(rows=rows), DynamicCache()
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        output = case.model(**batch, position_ids=positions, past_key_values=cache, use_cache=True)
    return output.logits[:, -1], cache, batch["attention_mask"]


def decode(
    case: Case, cache: DynamicCache, mask: Tensor, tokens: Tensor, steps: int = STEPS
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Greedy steps: logits of each, the mask and the last tokens."""
    found = []
    for _ in range(steps):
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        with torch.no_grad():
            output = case.model(
                input_ids=tokens[:, None],
                attention_mask=mask,
                position_ids=mask.sum(-1, keepdim=True) - 1,
                past_key_values=cache,
                use_cache=True,
            )
        found.append(output.logits[:, -1])
        tokens = output.logits[:, -1].argmax(-1)
    return found, mask, tokens


def joined(caches: list[DynamicCache], masks: list[Tensor]) -> tuple[DynamicCache, Tensor]:
    """One cache of all rows, shorter ones padded on the left."""
    width = max(mask.shape[1] for mask in masks)

    def padded(values: Tensor, at: int) -> Tensor:
        shape = list(values.shape)
        shape[at] = width - shape[at]
        return torch.cat([values.new_zeros(shape), values], dim=at)

    whole = DynamicCache()
    for layer in range(len(caches[0].layers)):
        keys = torch.cat([padded(cache.layers[layer].keys, 2) for cache in caches])
        values = torch.cat([padded(cache.layers[layer].values, 2) for cache in caches])
        whole.update(keys, values, layer)
    return whole, torch.cat([padded(mask, 1) for mask in masks])


def loop(case: Case, guard: Guard | None) -> list[Tensor]:
    """Rows 0 and 1 decode, 2 and 3 join them, 0 leaves: logits of every pass, in order."""
    first, cache_one, mask_one = prefill(case, [0, 1])
    one = None if guard is None else guard.carried()
    if guard is not None and one is not None:
        guard.carry_on(one, cache_one)
    logits, mask_one, tokens_one = decode(case, cache_one, mask_one, first.argmax(-1), 2)
    if guard is not None:
        one = guard.carried()
    second, cache_two, mask_two = prefill(case, [2, 3])
    cache, mask = joined([cache_one, cache_two], [mask_one, mask_two])
    tokens = torch.cat([tokens_one, second.argmax(-1)])
    if guard is not None and one is not None:
        guard.carry_on(CarriedRows.join([one, guard.carried()]), cache)
    both, mask, tokens = decode(case, cache, mask, tokens, 2)
    kept = [1, 2, 3]
    cache.batch_select_indices(torch.tensor(kept))
    if guard is not None:
        guard.carry_on(guard.carried().select(kept), cache)
    rest, _, _ = decode(case, cache, mask[kept], tokens[kept], 2)
    return [first, *logits, second, *both, *rest]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "mistral"])
def test_closed_rows_keep_every_bit_of_the_bare_models(family: str) -> None:
    """The same loop without a guard computes the same numbers for rows 1 and 3, whatever the others do.

    (Not so for experts: which rows one computes together depends on what the others say.)
    """
    case = make_case(family)
    bare = loop(case, None)
    with case.guard() as guard:
        guarded = loop(case, guard)
    rows_of = [(0, 1), (0, 1), (0, 1), (2, 3), (0, 1, 2, 3), (0, 1, 2, 3), (1, 2, 3), (1, 2, 3)]
    steered = 0
    for rows, before, after in zip(rows_of, bare, guarded, strict=True):
        for at, row in enumerate(rows):
            if case.opens[row]:
                steered += not torch.equal(before[at], after[at])
            else:
                assert torch.equal(before[at], after[at]), (family, row)
    assert steered >= 4, "the open rows were not steered"


@pytest.mark.parametrize("positions", ["from_gate", "all"])
@pytest.mark.parametrize("steered", [(2, 3), (0, 1, 2)])
def test_every_row_says_what_it_says_alone(positions: Any, steered: tuple[int, ...]) -> None:
    """Also where the prompt has to be run twice: a steered layer below the gate's."""
    case = make_case(positions=positions, steered=steered)
    with case.guard() as guard:
        alone = [case.logits(rows=[row], max_new_tokens=7)[0] for row in range(4)]
    with case.guard() as guard:
        found = loop(case, guard)
    places = {
        1: [(0, 1), (1, 1), (2, 1), (4, 1), (5, 1), (6, 0), (7, 0)],
        2: [(3, 0), (4, 2), (5, 2), (6, 1), (7, 1)],
        3: [(3, 1), (4, 3), (5, 3), (6, 2), (7, 2)],
    }
    for row, seen in places.items():
        for step, (number, at) in enumerate(seen):
            torch.testing.assert_close(found[number][at], alone[row][step], atol=2e-4, rtol=1e-3)


def test_a_monitors_state_goes_along() -> None:
    case = make_case(opens=(False, False, False, False), steered=(2, 3))
    plain = case.plan
    weights = torch.randn(32, generator=torch.Generator().manual_seed(3))
    monitor = AnswerMonitor("test", 2, 2, weights, 0.0, 0.0)
    plan = SteeringPlan(plain.gate, plain.additions, plain.positions, monitor)
    case.plan = plan
    alone = []
    for row in range(4):
        with case.guard() as guard:
            case.generate(rows=[row], max_new_tokens=STEPS + 3)
            alone.append(guard.decisions[0].answer_token or 0)
    with case.guard() as guard:
        loop(case, guard)
        opened = guard.carried().opened_at()
    read = {1: 6, 2: 4, 3: 4}  # tokens of each row that the loop has run
    assert opened == [alone[row] if alone[row] <= read[row] else 0 for row in (1, 2, 3)]
    assert any(opened) and len(set(alone)) > 1, "the monitor tells no rows apart; the test shows nothing"


def test_strengths_scale_rows_one_by_one() -> None:
    case = make_case(opens=(True, True, True, False))
    bare, _, _ = prefill(case, [0, 1, 2, 3])
    with case.guard() as guard:
        steered, _, _ = prefill(case, [0, 1, 2, 3])
        with guard.strengths([1.0, 0.0, 0.5, 3.0]):
            scaled, cache, mask = prefill(case, [0, 1, 2, 3])
        rows = guard.carried()
        assert rows.open.tolist() == [True, True, True, False]
        assert torch.equal(scaled[0], steered[0]) and torch.equal(scaled[3], bare[3])
        assert torch.equal(scaled[1], bare[1]), "a strength of 0 is the bare model"
        assert not torch.equal(scaled[2], bare[2]) and not torch.equal(scaled[2], steered[2])
        guard.carry_on(rows, cache)
        with_rows, _, _ = decode(case, cache, mask, bare.argmax(-1), 1)
    bare, cache, mask = prefill(case, [0, 1, 2, 3])
    without, _, _ = decode(case, cache, mask, bare.argmax(-1), 1)
    assert torch.equal(with_rows[0][3], without[0][3])
    assert not torch.equal(with_rows[0][0], without[0][0])


def test_a_strength_of_zero_decodes_as_the_bare_model() -> None:
    case = make_case(opens=(True, True, True, True))
    logits, cache, mask = prefill(case, [0, 1])
    bare, _, _ = decode(case, cache, mask, logits.argmax(-1))
    with case.guard() as guard:
        with guard.strengths([0.0, 0.0]):
            first, cache, mask = prefill(case, [0, 1])
        guard.carry_on(guard.carried(), cache)
        found, _, _ = decode(case, cache, mask, first.argmax(-1))
    assert torch.equal(first, logits)
    for one, other in zip(found, bare, strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_carried_is_refused() -> None:
    case = make_case()
    guard = case.guard()
    with pytest.raises(SteeringError, match="No prompt has passed"):
        guard.carried()
    with guard:
        _, cache, _ = prefill(case, [0, 1])
        rows = guard.carried()
        with pytest.raises(SteeringError, match="3 strengths"), guard.strengths([1.0, 1.0, 1.0]):
            prefill(case, [0, 1])
    with pytest.raises(SteeringError, match="not active"):
        guard.carry_on(rows, cache)
