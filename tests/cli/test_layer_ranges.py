import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferaligner.cli.layer_ranges import read_layers, written
from inferaligner.errors import InputError


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("12", (12,)),
        ("12-14", (12, 13, 14)),
        ("3,1,1", (1, 3)),
        ("0-2,7, 5 - 6", (0, 1, 2, 5, 6, 7)),
        ("4-4", (4,)),
    ],
)
def test_reading(text: str, layers: tuple[int, ...]) -> None:
    assert read_layers(text) == layers


@pytest.mark.parametrize("text", ["", "a", "3-1", "1,,2", "-1", "1-2-3", "1.5", "12-", "9" * 30])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--steer-layers"):
        read_layers(text)


@given(st.sets(st.integers(0, 60), min_size=1))
def test_written_layers_read_back(layers: set[int]) -> None:
    ascending = tuple(sorted(layers))
    assert read_layers(written(ascending)) == ascending


def test_runs_are_written_as_ranges() -> None:
    assert written((1, 2, 3, 7, 8)) == "1-3,7,8"
