"""The tables that `evaluate` and `demo` print. An answer that the report withholds is withheld here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from rich.box import HORIZONTALS, SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from inferaligner.cli.answer_panels import gate_mark
from inferaligner.cli.tables import RATE, add_columns, area_cells, rate_cells, titled
from inferaligner.cli.terminal import results
from inferaligner.evaluation.metrics import BARE, ResultRow
from inferaligner.evaluation.run_folder import RunFolder

if TYPE_CHECKING:
    from inferaligner.artifact import AlignerArtifact

_COLOURS = {"refusal": "cyan", "compliance": "yellow", "gibberish": "magenta"}
_EXAMPLES_PER_SUITE = 2


def show(folder: RunFolder, rows: Sequence[ResultRow]) -> None:
    """Prints methods against suites, the decision with its checks, the gate's AUROC and the judge."""
    from inferaligner.judges.rules import RuleJudge
    from inferaligner.reporting.evaluation import gate_area, method_table, titles_of
    from inferaligner.reporting.go_no_go import go_no_go

    titles = titles_of(folder)
    matrix = method_table(folder.records, titles)
    title = (
        f"Methods and suites in per cent; {folder.lengths}\n(▲ ▼ clear against the bare model, ≈ not clear)"
    )
    # Narrow enough for 80 columns with a suite of every kind.
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", min_width=13)
    for name, metric in matrix["columns"]:
        heading = [name.replace("-", "-\n"), metric.partition(": ")[2]]
        table.add_column("\n".join(heading), justify="right")
    answers = Table(title="Answers to harmful prompts, in per cent", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    answers.add_column("method", min_width=13)
    for companion in matrix["companions"]:
        answers.add_column(companion, justify="right")
    for title, cells, companions in matrix["rows"]:
        shown = [
            f"{value.removesuffix(' %')} {mark or ' '}\n"
            f"[dim]{spread.removesuffix(' %').replace(' to ', '–')}  [/dim]"
            for value, spread, mark in cells
        ]
        table.add_row(title, *shown)
        answers.add_row(title, *(value.removesuffix(" %") for value in companions))
    results().print(table)
    if matrix["companions"]:
        results().print(answers)
    decision = go_no_go(folder.records, titles)
    results().print(
        f"{decision.decision.capitalize()}. {decision.headline}", style="bold", markup=False, highlight=False
    )
    lines = [f"{check.question} {check.answer}. {check.figures}" for check in decision.checks]
    for line in (*lines, *decision.notes):
        results().print(f"• {line}", markup=False, highlight=False)
    area = gate_area(rows, decision.method)
    if area is not None:
        results().print(
            f"Gate AUROC {area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f}), n = {area['n']}",
            highlight=False,
        )
    judge = RuleJudge()
    results().print(f"Judge: {judge.name}. {judge.agreement}", style="dim", markup=False, highlight=False)


def examples_table(folder: RunFolder) -> Table:
    """Some prompts of every suite with the answers of the bare model and of InferAligner."""
    from inferaligner.reporting.evaluation import titles_of
    from inferaligner.reporting.examples import examples

    titles, ours = titles_of(folder), "inferaligner"
    table = _table("Side by side, on prompts that took no part in fitting", lines=True)
    table.add_column("prompt", ratio=3)
    for method in (BARE, ours):
        table.add_column(titles[method], ratio=4)
    withhold = bool(folder.run.get("withhold"))
    shown = examples(folder.records, titles, ours, withhold=withhold, per_suite=_EXAMPLES_PER_SUITE)
    for example in shown:
        prompt = Text(f"{example.prompt}\n{example.suite}")
        if example.score is not None:
            style = "yellow" if example.open else "green"
            prompt.append(f"; {gate_mark(example.score, bool(example.open))}", style=style)
        cells = []
        for method in (BARE, ours):
            answer = next(answer for answer in example.answers if titles[method] in answer.methods)
            if method == ours and titles[BARE] in answer.methods:
                cells.append(Text("the same, token by token", style="dim"))
                continue
            cell = Text(f"{answer.outcome}\n", style=f"bold {_COLOURS.get(answer.outcome, '')}")
            cells.append(
                cell.append(answer.text, style="not bold dim" if answer.withheld else "not bold default")
            )
        table.add_row(prompt, *cells)
    return table


def open_rates_table(artifact: AlignerArtifact) -> Table:
    """How often an aligner's gate opens on held-out prompts, by kind, with the AUROC."""
    held_out = artifact.calibration["held_out"]
    table = _table("How often the gate opens on held-out prompts")
    add_columns(table, ["prompts"], RATE)
    for kind, rate in held_out["open"].items():
        table.add_row(kind, *rate_cells(rate))
    if held_out.get("auroc"):
        table.add_section()
        table.add_row("AUROC", *area_cells(held_out["auroc"]))
    return table


def _table(title: str, *, lines: bool = False) -> Table:
    # No vertical lines: they take eight columns, and a terminal may have only eighty.
    return titled(title, box=HORIZONTALS, pad_edge=False, show_lines=lines)


def catalogue_tables() -> Iterator[Table]:
    """All suites and all methods, a table each."""
    from inferaligner.evaluation.methods import catalogue as methods
    from inferaligner.evaluation.suites import catalogue as suites
    from inferaligner.evaluation.suites.suite import Shipped

    table = Table("suite", "kind", "task", "shipped", "licence", "source", title="Suites")
    for name, suite in sorted(suites.declared().items()):
        shipped = "yes" if isinstance(suite.source, Shipped) else ""
        table.add_row(name, suite.kind, suite.task, shipped, suite.licence, suite.citation)
    yield table
    table = Table("method", "what it is", title="Methods")
    for name, module in sorted(methods.declared().items()):
        table.add_row(name, (module.__doc__ or "").strip().splitlines()[0])
    yield table
