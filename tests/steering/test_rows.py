"""Golden: a row of a batch is the same as the row alone, however the batch is padded."""

from typing import Any

import pytest
import torch

from inferaligner.errors import SteeringError
from inferaligner.steering.plan import Positions
from tests.support.steering_cases import Case, make_case

# A batch of another size multiplies matrices of another size; their rounding differs in the last digits.
SCORE = 1e-4
LOGITS = 1e-4


@pytest.mark.parametrize("positions", ["from_gate", "all"])
@pytest.mark.parametrize(("reads", "steered"), [(((1, 0),), (1, 2)), (((2, 0),), (0, 1, 3))])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_generate(family: str, reads: Any, steered: Any, positions: Positions) -> None:
    case = make_case(family, reads=reads, steered=steered, positions=positions)
    with case.guard() as guard:
        together = case.generate()
        decisions = guard.decisions
        for row in range(len(case.prompts)):
            alone = case.generate(rows=[row])
            assert torch.equal(alone[0], together[row])
            assert guard.decisions[0].open == decisions[row].open == case.opens[row]
            assert guard.decisions[0].score == pytest.approx(decisions[row].score, abs=SCORE)


@pytest.mark.parametrize("positions", ["from_gate", "all"])
@pytest.mark.parametrize(("reads", "steered"), [(((1, 0),), (1, 2)), (((2, 0),), (0, 1, 3))])
@pytest.mark.parametrize("side", ["left", "right"])
def test_direct_forward(side: str, reads: Any, steered: Any, positions: Positions) -> None:
    case = make_case(reads=reads, steered=steered, positions=positions)
    batch = with_positions(case.batch(side))
    with torch.no_grad(), case.guard() as guard:
        together = case.model(**batch).logits
        decisions = guard.decisions
        for row, tokens in enumerate(case.prompts):
            alone = case.model(input_ids=torch.tensor([tokens])).logits[0]
            mine = together[row][batch["attention_mask"][row] == 1]
            torch.testing.assert_close(mine, alone, atol=LOGITS, rtol=LOGITS)
            assert guard.decisions[0].open == decisions[row].open == case.opens[row]
            assert guard.decisions[0].score == pytest.approx(decisions[row].score, abs=SCORE)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("reads", "steered"), [(((1, 0),), (1, 2)), (((2, 0),), (0, 1, 3))])
def test_prompt_lengths(side: str, reads: Any, steered: Any) -> None:
    """Prompt and answer in one forward call give what decoding the answer step by step gives."""
    case = make_case(reads=reads, steered=steered)
    with case.guard() as guard:
        answers = case.generate()
        stepwise = case.logits()
        whole = Case(case.model, joined(case, answers), case.plan, case.opens)
        batch = with_positions(whole.batch(side))
        lengths = [len(prompt) for prompt in case.prompts]
        with torch.no_grad(), guard.prompt_lengths(lengths):
            logits = case.model(**batch).logits
        assert [decision.open for decision in guard.decisions] == list(case.opens)
        for row, length in enumerate(lengths):
            mine = logits[row][batch["attention_mask"][row] == 1]
            torch.testing.assert_close(mine[length - 1 : -1], stepwise[row], atol=LOGITS, rtol=LOGITS)
        # Without the lengths, the end of the answer is taken for the end of the prompt.
        with torch.no_grad():
            misread = case.model(**batch).logits
        assert not torch.allclose(misread, logits, atol=LOGITS)
        for wrong in ([3, 3], [0, 3, 3, 3], [200, 3, 3, 3]):
            with pytest.raises(SteeringError, match="rompt lengths"), guard.prompt_lengths(wrong):
                case.model(**batch)


def test_right_padding_without_a_mask() -> None:
    """generate() infers the mask from the padding token, and so does the guard."""
    case = make_case()
    batch = case.batch("right")
    with case.guard() as guard:
        case.generate(**batch)
        told = [(decision.open, decision.score) for decision in guard.decisions]
        case.model.generate(batch["input_ids"], max_new_tokens=2, do_sample=False)
        assert [(decision.open, decision.score) for decision in guard.decisions] == told
    assert [is_open for is_open, _ in told] == list(case.opens)


def with_positions(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp_min(0)
    return {**batch, "position_ids": positions}


def joined(case: Case, answers: torch.Tensor) -> list[list[int]]:
    return [prompt + answer.tolist() for prompt, answer in zip(case.prompts, answers, strict=True)]
