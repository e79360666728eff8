import pytest
import torch

from inferaligner.errors import SteeringError
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.steering.batch_state import PromptScope
from inferaligner.steering.plan import Mode, Positions
from inferaligner.steering.prompt_spans import PromptSpans


def scope_of(
    *ends: int,
    offsets: tuple[int, ...] = (0,),
    mode: Mode = "gate",
    positions: Positions = "from_gate",
    bias: float = 0.0,
) -> PromptScope:
    gate = GuidanceGate("test", tuple(GateRead(1, at) for at in offsets), torch.ones(len(offsets), 2), bias)
    return PromptScope(
        PromptSpans(torch.zeros(len(ends), dtype=torch.long), torch.tensor(ends)), gate, mode, positions
    )


def run(scope: PromptScope, length: int, start: int, scores: list[float]) -> bool:
    now = scope.begin_pass(len(scores), length, start)
    scope.add_scores(torch.tensor(scores))
    scope.latch(now, length)
    return scope.end_pass(now)


@pytest.mark.parametrize(
    ("scores", "steers"),
    [
        ([1.0, 2.0], "everything"),
        ([1.0, -1.0], "open_rows"),
        ([-1.0, 0.0], "nothing"),
        ([torch.nan, -1], "open_rows"),
    ],
)
def test_decoding_is_known_after_the_prompt(scores: list[float], steers: str) -> None:
    scope = scope_of(4, 4)
    assert scope.decisions() == []
    assert run(scope, 5, 0, scores)
    assert scope.settled
    assert scope.decoding is not None
    assert (scope.decoding.steers, scope.decoding.reads_gate) == (steers, False)
    assert scope.any_open is (steers != "nothing")
    assert [decision.open for decision in scope.decisions()] == [not score <= 0 for score in scores]


def test_rows_that_end_in_different_chunks() -> None:
    """A row is decided in the chunk that holds its last prompt token, and stays open whatever comes."""
    scope = scope_of(1, 5)
    assert not run(scope, 3, 0, [1.0, 0.0])
    assert scope.open is not None
    assert scope.open.tolist() == [True, False]
    assert run(scope, 3, 3, [-9.0, -1.0])
    assert [decision.open for decision in scope.decisions()] == [True, False]
    closed = scope_of(1, 5)
    run(closed, 3, 0, [-1.0, 0.0])
    run(closed, 3, 3, [9.0, 1.0])  # what a later chunk says of that row is not about its prompt
    assert [decision.open for decision in closed.decisions()] == [False, True]


def test_nothing_opens_before_its_end() -> None:
    scope = scope_of(5, 5, bias=3.0)
    assert not run(scope, 3, 0, [0.0, 0.0])
    assert scope.open is not None
    assert not scope.open.any()


@pytest.mark.parametrize(("mode", "opened"), [("always", [True, True]), ("never", [False, False])])
def test_modes(mode: Mode, opened: list[bool]) -> None:
    scope = scope_of(4, 4, mode=mode)
    run(scope, 5, 0, [1.0, -1.0])
    assert [decision.open for decision in scope.decisions()] == opened
    assert [decision.score for decision in scope.decisions()] == [1.0, -1.0]


def steers_above_the_gate(scope: PromptScope, length: int, start: int, scores: list[float]) -> str:
    now = scope.begin_pass(len(scores), length, start)
    assert now.steers == "by_position", "layers below the gate know nothing yet"
    scope.add_scores(torch.tensor(scores))
    scope.latch(now, length)
    steers = now.steers
    scope.end_pass(now)
    return steers


@pytest.mark.parametrize("positions", ["from_gate", "all"])
@pytest.mark.parametrize(
    ("scores", "mode", "steers"),
    [
        ([-1.0, 0.0], "gate", "nothing"),
        ([-1.0, 1.0], "gate", "by_position"),
        ([torch.nan, -1.0], "gate", "by_position"),
        ([-1.0, -1.0], "always", "by_position"),
    ],
)
def test_a_closed_prompt_is_known_at_the_gate(
    scores: list[float], mode: Mode, steers: str, positions: Positions
) -> None:
    scope = scope_of(4, 3, mode=mode, positions=positions)
    assert steers_above_the_gate(scope, 5, 0, scores) == steers
    assert scope.any_open is (steers != "nothing")


def test_chunks_are_steered_from_the_first_end_on() -> None:
    """A later chunk is not taken for closed because of its own rows: one of an earlier chunk may be open."""
    for first in (1.0, -1.0):
        scope = scope_of(4, 9)
        assert steers_above_the_gate(scope, 3, 0, [9.0, 9.0]) == "nothing"
        assert steers_above_the_gate(scope, 3, 3, [first - 9.0, -9.0]) == "by_position"
        assert steers_above_the_gate(scope, 3, 6, [0.0, 0.0]) == "by_position"
        assert steers_above_the_gate(scope, 3, 9, [0.0, -1.0]) == ("by_position" if first > 0 else "nothing")
        assert [decision.open for decision in scope.decisions()] == [first > 0, False]


def columns(scope: PromptScope, length: int, start: int) -> list[list[bool]]:
    """Which tokens `[rows, length]` of a prefill pass are steered."""
    now = scope.begin_pass(2, length, start)
    scope.add_scores(torch.tensor([1.0, -1.0]))
    scope.latch(now, length)
    first, mask = scope.steered_columns(now, torch.zeros(2, length, 3))
    scope.end_pass(now)
    whole = torch.zeros(2, length, dtype=torch.bool)
    whole[:, first:] = mask[:, :, 0]
    return whole.tolist()


def test_steered_columns() -> None:
    none = [False] * 5
    assert columns(scope_of(4, 4), 5, 0) == [[False, False, False, False, True], none]
    assert columns(scope_of(2, 4), 5, 0) == [[False, False, True, True, True], none]
    assert columns(scope_of(4, 4, positions="all"), 5, 0) == [[True] * 5, none]
    chunked = scope_of(6, 6)
    assert columns(chunked, 5, 0) == [none, none]
    assert columns(chunked, 3, 5) == [[False, True, True], [False] * 3]


def test_repeated_rows() -> None:
    scope = scope_of(4, 2)
    scope.begin_pass(6, 5, 0)
    assert scope.rows == 6
    assert scope.spans.ends.tolist() == [4, 4, 4, 2, 2, 2]
    with pytest.raises(SteeringError, match="expected a multiple"):
        scope_of(4, 2).begin_pass(3, 5, 0)


def test_tokens_that_passed_the_guard_by() -> None:
    scope = scope_of(7)
    run(scope, 3, 0, [0.0])
    with pytest.raises(SteeringError, match="Tokens 3 to 4 reached the cache"):
        scope.begin_pass(1, 3, 5)


def test_the_gates_tokens_must_be_new() -> None:
    scope_of(7, offsets=(0, 2)).begin_pass(1, 3, 5)
    with pytest.raises(SteeringError, match="from token 5 on, but 6 tokens are in the cache"):
        scope_of(7, offsets=(0, 2)).begin_pass(1, 2, 6)


def test_short_prompts() -> None:
    gate = GuidanceGate("test", (GateRead(1, 3),), torch.ones(1, 2), 0.0)
    spans = PromptSpans(
        torch.tensor([0, 3]), torch.tensor([5, 5])
    )  # left padding: the second row has 3 tokens
    with pytest.raises(SteeringError, match="of this batch has 3"):
        PromptScope(spans, gate, "gate", "from_gate").begin_pass(2, 6, 0)


def test_decoding_without_a_cache_brings_the_prompt_along() -> None:
    scope = scope_of(4)
    run(scope, 5, 0, [1.0])
    assert scope.begin_pass(1, 6, 0).steers == "by_position"
    with pytest.raises(SteeringError, match="without the prompt and without a cache"):
        scope.begin_pass(1, 1, 0)


def test_kept_open() -> None:
    earlier = scope_of(4, 4)
    run(earlier, 5, 0, [1.0, -1.0])
    later = scope_of(9, 9)
    later.keep_open(earlier)
    assert steers_above_the_gate(later, 3, 5, [-0.5, -0.5]) == "by_position", "before its own end"
    assert steers_above_the_gate(later, 2, 8, [-0.5, -0.5]) == "by_position"
    assert [decision.open for decision in later.decisions()] == [True, False]
    other = scope_of(9)
    other.keep_open(earlier)
    assert other.open is None, "another number of rows is another batch"
