"""Which tokens are steered, and from where the gate may read."""

from typing import Any

import pytest
import torch
from torch import Tensor

from inferaligner.models.anatomy import residual, with_residual
from inferaligner.steering.plan import Positions
from tests.support.steering_cases import Case, make_case

PLACES = {
    "below": (((0, 0),), (1, 3)),
    "at": (((1, 0),), (1, 3)),
    "between": (((2, 0),), (1, 3)),
    "above": (((3, 0),), (0, 1)),
    "several": (((0, 0), (2, 0), (2, 1), (1, 3)), (2, 3)),
    "several above": (((0, 2), (3, 0), (1, 1)), (0, 2)),
}


@pytest.mark.parametrize("positions", ["from_gate", "all"])
@pytest.mark.parametrize("place", PLACES)
def test_steered_tokens(place: str, positions: Positions) -> None:
    """The guard's logits are those of a model whose layers add the vectors at the right tokens by hand."""
    reads, steered = PLACES[place]
    case = make_case(reads=reads, steered=steered, positions=positions)
    batch = case.batch()
    ends = torch.full((4,), batch["input_ids"].shape[1] - 1)
    with torch.no_grad():
        expected = steered_by_hand(case, batch, ends, positions)
        with case.guard() as guard:
            output = case.model(**batch).logits
            assert [decision.open for decision in guard.decisions] == list(case.opens)
            assert [decision.score for decision in guard.decisions] == pytest.approx([1, -1, 1, -1], abs=0.02)
    seen = batch["attention_mask"] == 1
    torch.testing.assert_close(output[seen], expected[seen], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 8, 9])
@pytest.mark.parametrize("positions", ["from_gate", "all"])
@pytest.mark.parametrize("place", ["several", "several above"])
def test_chunks_that_part_the_gates_offsets(place: str, positions: Positions, chunk: int) -> None:
    reads, steered = PLACES[place]
    case = make_case(reads=reads, steered=steered, positions=positions)
    with case.guard() as guard:
        expected = case.logits()
        whole = [decision.score for decision in guard.decisions]
        torch.testing.assert_close(case.logits(prefill_chunk_size=chunk), expected, atol=1e-4, rtol=1e-4)
        assert [decision.score for decision in guard.decisions] == pytest.approx(whole, abs=1e-3)


@pytest.mark.parametrize("opens", [(False, True, False, False), (True, False, False, False), (False,) * 4])
@pytest.mark.parametrize("positions", ["from_gate", "all"])
def test_rows_that_end_in_an_earlier_chunk(positions: Positions, opens: Any) -> None:
    """Padded on the right, row 1 is decided in the first chunk of 8 tokens, and the others in the second."""
    case = make_case(positions=positions, opens=opens)
    batch = case.batch("right")
    with case.guard() as guard:
        expected = case.logits(**batch)
        torch.testing.assert_close(case.logits(**batch, prefill_chunk_size=8), expected, atol=1e-4, rtol=1e-4)
        assert [decision.open for decision in guard.decisions] == list(opens)


def test_the_two_differ() -> None:
    logits = {}
    for positions in ("from_gate", "all"):
        case = make_case(positions=positions)  # type: ignore[arg-type]
        with case.guard():
            logits[positions] = case.logits(rows=[0])[0, 0]
    assert not torch.allclose(logits["from_gate"], logits["all"], atol=1e-3)


def test_from_gate_leaves_the_prompt_alone() -> None:
    case = make_case()
    batch = case.batch("right")
    with torch.no_grad():
        bare = case.model(**batch).logits
        with case.guard():
            steered = case.model(**batch).logits
    for row, prompt in enumerate(case.prompts):
        end = len(prompt) - 1
        assert torch.equal(steered[row, :end], bare[row, :end])
        assert torch.equal(steered[row, end], bare[row, end]) is not case.opens[row]


def test_modes() -> None:
    case = make_case()
    bare = case.logits()
    with case.guard("never") as guard:
        assert torch.equal(case.logits(), bare)
        assert [decision.score for decision in guard.decisions] == pytest.approx([1, -1, 1, -1], abs=0.02)
        assert not any(decision.open for decision in guard.decisions)
    with case.guard("gate"):
        gated = case.logits()
    with case.guard("always") as guard:
        always = case.logits()
        assert all(decision.open for decision in guard.decisions)
        assert [decision.score for decision in guard.decisions] == pytest.approx([1, -1, 1, -1], abs=0.02)
    for row in range(4):
        assert torch.allclose(always[row], gated[row], atol=1e-5) is case.opens[row]


def steered_by_hand(case: Case, batch: dict[str, Any], ends: Tensor, positions: Positions) -> Tensor:
    columns = torch.arange(batch["input_ids"].shape[1])
    mask = torch.tensor(case.opens)[:, None] & ((columns >= ends[:, None]) | (positions == "all"))

    def adding(vector: Tensor) -> Any:
        return lambda module, inputs, output: with_residual(
            output, residual(output) + mask[:, :, None] * vector
        )

    layers = case.model.model.layers
    handles = [layers[at].register_forward_hook(adding(vector)) for at, vector in case.plan.additions.items()]
    try:
        return case.model(**batch).logits
    finally:
        for handle in handles:
            handle.remove()
