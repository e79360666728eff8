from hypothesis import given
from hypothesis import strategies as st

from inferaligner.prompts.shared_prefixes import SharedPrefix, shared_prefixes


def test_two_levels() -> None:
    system, wrapper = list(range(10)), list(range(100, 140))
    rows = [[*system, *wrapper, 500 + i] for i in range(4)] + [[*system, 600 + i, 7] for i in range(3)]
    assert shared_prefixes(rows) == [SharedPrefix(10, (4, 5, 6)), SharedPrefix(50, (0, 1, 2, 3))]


def test_too_few_or_too_little_in_common_stay_with_the_others() -> None:
    three = [[1, *range(100, 140), i] for i in range(3)]
    short = [[1, *range(200, 231), i] for i in range(9)]
    assert shared_prefixes([*three, *short]) == [SharedPrefix(1, tuple(range(12)))]


def test_the_last_tokens_stay_outside() -> None:
    same = [[5] * 40 for _ in range(6)]
    assert shared_prefixes(same, keep=6) == [SharedPrefix(34, tuple(range(6)))]
    assert shared_prefixes([[1, 2]], keep=3) == [SharedPrefix(0, (0,))]
    assert shared_prefixes([]) == []


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=3, max_size=60), min_size=1, max_size=30), st.integers(1, 3)
)
def test_every_row_is_in_one_group_and_shares_its_prefix(rows: list[list[int]], keep: int) -> None:
    groups = shared_prefixes(rows, keep)
    assert sorted(row for group in groups for row in group.rows) == list(range(len(rows)))
    for group in groups:
        assert len({tuple(rows[row][: group.length]) for row in group.rows}) == 1
        assert all(len(rows[row]) - group.length >= keep for row in group.rows)
