"""Golden: for every family, closed means bit-identical, open means steered, and nothing is left behind."""

import pytest
import torch

from inferaligner.steering.plan import Positions
from tests.support.steering_cases import make_case, trace_of_hooks
from tests.support.tiny_models import FAMILIES

# Experts are multiplied by groups of tokens. A row that is steered is routed to other experts, so the groups
# of the other rows have other sizes, and a matrix product may round differently with its size.
MIXTURES = ("mixtral", "qwen2_moe", "qwen3_moe")
ROUNDING = 1e-5


@pytest.mark.parametrize("positions", ["from_gate", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_closed_rows_keep_their_bits(family: str, positions: Positions) -> None:
    case = make_case(family, positions=positions)
    before = trace_of_hooks(case.model)
    bare = case.logits()
    with case.guard() as guard:
        steered = case.logits()
        assert [decision.open for decision in guard.decisions] == list(case.opens)
        assert [decision.score for decision in guard.decisions] == pytest.approx([1, -1, 1, -1], abs=0.02)
    for row in case.closed_rows:
        if family in MIXTURES:
            torch.testing.assert_close(steered[row], bare[row], atol=ROUNDING, rtol=ROUNDING)
        else:
            assert torch.equal(steered[row], bare[row]), f"row {row} is closed"
    for row in case.open_rows:
        assert not torch.allclose(steered[row, 0], bare[row, 0], atol=1e-2), f"row {row} is open"
    assert trace_of_hooks(case.model) == before
    assert torch.equal(case.logits(), bare)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_closed_batch_keeps_its_bits(family: str) -> None:
    """Mixtures of experts as well: without an open row the groups are the same."""
    case = make_case(family, opens=(False, False, False, False))
    bare = case.logits()
    with case.guard() as guard:
        assert torch.equal(case.logits(), bare)
        assert torch.equal(case.model(**case.batch()).logits, case.model(**case.batch("left")).logits)
    assert not any(decision.open for decision in guard.decisions)


@pytest.mark.parametrize("family", FAMILIES)
def test_steering_below_the_gate(family: str) -> None:
    """The decision comes too late for one pass: open rows run their prompt a second time."""
    case = make_case(family, reads=((3, 0),), steered=(0, 2))
    bare = case.logits()
    with case.guard():
        steered = case.logits()
        tokens = case.generate()
        uncached = case.generate(use_cache=False)
    with case.guard("always"):
        always = case.logits()
    for row in case.closed_rows:
        if family in MIXTURES:
            torch.testing.assert_close(steered[row], bare[row], atol=ROUNDING, rtol=ROUNDING)
        else:
            assert torch.equal(steered[row], bare[row])
    for row in case.open_rows:
        assert not torch.allclose(steered[row, 0], bare[row, 0], atol=1e-2)
        torch.testing.assert_close(steered[row], always[row], atol=1e-4, rtol=1e-4)
    assert torch.equal(tokens, uncached)
