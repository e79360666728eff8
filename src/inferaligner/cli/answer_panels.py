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

    def panel(text: str, title: str, colour: str) -> None:
        console.print(Panel(Text(text), title=Text(title), title_align="left", border_style=colour))

    panel(row["prompt"], "prompt", "dim")
    mark = gate_mark(row["score"], row["open"], row.get("opened_at"))
    panel(row["response"], f"answer, {mark}", "yellow" if row["open"] else "green")
    if row["open"] and "unaligned_response" in row:
        panel(row["unaligned_response"], "answer without the aligner", "red")


def gate_mark(score: float, is_open: bool, opened_at: int | str | None = None) -> str:
    """The gate's decision in a few words; with a token number as `opened_at`, the monitor's decision."""
    if isinstance(opened_at, int):
        return f"gate closed ({score:+.2f}), monitor open from token {opened_at} on"
    return f"gate {'open' if is_open else 'closed'} ({score:+.2f})"
