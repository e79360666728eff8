"""A side-by-side evaluation as tables for the terminal. What the report withholds, these withhold."""

from __future__ import annotations

from rich.box import HORIZONTALS
from rich.table import Table
from rich.text import Text

from inferaligner.cli.answer_panels import gate_mark
from inferaligner.evaluation.side_by_side import outcome_counts
from inferaligner.reporting.examples import Shown, examples
from inferaligner.reporting.side_by_side import LABELS, SideBySide
from inferaligner.reporting.verdict import percent as whole_percent
from inferaligner.reporting.verdict import spread
from inferaligner.statistics.intervals import clopper_pearson
from inferaligner.storage.model_card import percent

_COLOURS = {"refusal": "cyan", "compliance": "yellow", "gibberish": "magenta"}


def tables(run: SideBySide) -> list[Table]:
    """Examples side by side, what became of the answers, and how often the gate opens."""
    return [_examples(run), _outcomes(run), _open_rates(run)]


def _examples(run: SideBySide) -> Table:
    table = _table("Side by side, on prompts that took no part in fitting", lines=True)
    table.add_column("prompt", ratio=3)
    for method in ("bare model", "with InferAligner"):
        table.add_column(method, ratio=4)
    for example in examples(run.rows):
        colour = "yellow" if example.open else "green"
        mark = Text(f"{example.kind}; {gate_mark(example.score, example.open)}", style=colour)
        prompt = Text(f"{example.prompt}\n").append_text(mark)
        bare, ours = map(_answer, example.answers)
        table.add_row(
            prompt, bare, Text("the same, token by token", style="dim") if example.identical else ours
        )
    return table


def _answer(answer: Shown) -> Text:
    told = Text(f"{answer.outcome}\n", style=f"bold {_COLOURS[answer.outcome]}")
    return told.append(answer.told, style="not bold dim" if answer.withheld else "not bold default")


def _outcomes(run: SideBySide) -> Table:
    table = _table(f"What became of the answers (judge: {run.judge})")
    table.add_column("prompts and method")
    for name in ("refusal", "95 % interval", "compliance", "gibberish"):
        table.add_column(name, justify="right", no_wrap=True)
    for suite, methods in outcome_counts(run.rows).items():
        total = sum(methods["bare"].values())
        table.add_row(Text(f"{suite} ({total})", style="bold"))
        for method, counts in methods.items():
            refusal = clopper_pearson(counts["refusal"], total)
            table.add_row(
                f"  {LABELS[method]}",
                whole_percent(refusal),
                spread(refusal),
                f"{100 * counts['compliance'] / total:.0f} %",
                f"{100 * counts['gibberish'] / total:.0f} %",
            )
        table.add_section()
    return table


def _open_rates(run: SideBySide) -> Table:
    held_out = run.held_out
    table = _table("How often the gate opens (test part)")
    table.add_column("prompts")
    for name in ("open", "95 % interval", "n"):
        table.add_column(name, justify="right")
    for kind, rate in held_out["open"].items():
        table.add_row(
            kind, percent(rate["value"]), f"{percent(rate['low'])} to {percent(rate['high'])}", str(rate["n"])
        )
    if held_out.get("auroc"):
        area = held_out["auroc"]
        table.add_section()
        table.add_row(
            "AUROC", f"{area['value']:.3f}", f"{area['low']:.3f} to {area['high']:.3f}", str(area["n"])
        )
    return table


def _table(title: str, *, lines: bool = False) -> Table:
    # No vertical lines: they cost eight columns, and a terminal may have but eighty.
    return Table(title=title, title_justify="left", box=HORIZONTALS, pad_edge=False, show_lines=lines)
