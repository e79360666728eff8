import json

from hypothesis import given
from hypothesis import strategies as st

from inferaligner.storage.json_io import dump, plain

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner)
    ),
    max_leaves=10,
)


def strict(text: str) -> object:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


@given(VALUES, st.booleans())
def test_what_is_dumped_reads_back_as_the_plain_value(value: object, ascii_only: bool) -> None:
    assert strict(dump(value, ascii_only=ascii_only)) == plain(value)


def test_numbers_that_json_lacks_become_null() -> None:
    assert plain({1: (float("nan"), [float("inf"), -float("inf"), 0.5])}) == {"1": [None, [None, None, 0.5]]}


def test_on_one_line_unless_indented() -> None:
    assert "\n" not in dump({"a": "x\ny"})
    assert dump({"a": 1}, indent=2) == '{\n  "a": 1\n}'
    assert dump("ö", ascii_only=True) == '"\\u00f6"'
