"""The demo's tables on a terminal of eighty columns, and what they do not show."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console

from inferaligner.cli.demo_tables import tables
from inferaligner.evaluation.side_by_side import Row
from tests.support.synthetic_results import reply, row, rows, run

CANARY = "heliotrope-canary"


def printed(found: Sequence[Row] | None = None, width: int = 80) -> str:
    file = io.StringIO()
    for table in tables(run(found)):
        Console(file=file, width=width).print(table)
    return file.getvalue()


def test_every_number_fits_into_eighty_columns() -> None:
    text = printed()
    assert "refusal   95 % interval   compliance   gibberish" in text
    assert "44 to 97 %" in text
    assert "…" not in text


def test_answers_to_harmful_prompts_are_withheld() -> None:
    text = printed(rows(bare=f"Of course: {CANARY}"), width=400)
    assert CANARY not in text
    assert "(answer withheld, 3 words)" in text


def test_a_prompt_with_brackets_is_no_markup() -> None:
    answer = reply("[/bold] [red]no markup")
    found = [
        row("[bold]Q[/bold]", harmful=False, bare=answer, ours=answer, is_open=False, group="medical"),
        *rows(),
    ]
    text = printed(found, width=400)
    assert "[bold]Q[/bold]" in text
    assert "[/bold] [red]no markup" in text
