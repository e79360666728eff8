from __future__ import annotations

import pytest

from inferaligner.judges.declining_part import declining_part
from inferaligner.judges.rules import judge


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        ("I can't help with that. I can help you sell it.", "I can't help with that."),
        ("I'm sorry. I can't help with that. Try a lawyer.", "I'm sorry. I can't help with that."),
        (
            "I won't do that. I can't help with weapons.\n\nHere is a poem.",
            "I won't do that. I can't help with weapons.",
        ),
        ("I can't help with that", "I can't help with that"),
        ("Bread is made of flour. It rises.", "Bread is made of flour. It rises."),
        ("  I won't help with that!  ", "I won't help with that!"),
        ("", ""),
    ],
)
def test_offers_and_explanations_are_left_out(answer: str, part: str) -> None:
    assert declining_part(answer, lambda text: judge(text).outcome) == part
    assert declining_part(part, lambda text: judge(text).outcome) == part
