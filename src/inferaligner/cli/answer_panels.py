"""Answers in panels for the terminal, with the gate's decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.panel import Panel
from rich.text import Text

from inferaligner.cli.terminal import results


def show(row: Mapping[str, Any]) -> None:
    """Prints one answer, and the answer without the aligner if the two were compared."""
    console = results()
    console.print(Panel(Text(row["prompt"]), title="prompt", title_align="left", border_style="dim"))
    colour = "yellow" if row["open"] else "green"
    console.print(
        Panel(
            Text(row["response"]),
            title=Text(f"answer, {gate_mark(row['score'], row['open'], row.get('opened_at'))}"),
            title_align="left",
            border_style=colour,
        )
    )
    if row["open"] and "unaligned_response" in row:
        console.print(
            Panel(
                Text(row["unaligned_response"]),
                title="answer without the aligner",
                title_align="left",
                border_style="red",
            )
        )


def gate_mark(score: float, is_open: bool, opened_at: int | str | None = None) -> str:
    """The gate's decision in a few words; with a token number as `opened_at`, the monitor's decision."""
    if isinstance(opened_at, int):
        return f"gate closed ({score:+.2f}), monitor open from token {opened_at} on"
    return f"gate {'open' if is_open else 'closed'} ({score:+.2f})"
