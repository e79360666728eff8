"""The tables that `evaluate` prints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from inferaligner.cli.terminal import results
from inferaligner.evaluation.metrics import ResultRow
from inferaligner.evaluation.run_folder import RunFolder


def show(folder: RunFolder, rows: Sequence[ResultRow]) -> None:
    """The verdict, methods against suites, and the gate's AUROC."""
    from inferaligner.judges.rules import RuleJudge
    from inferaligner.reporting.evaluation import gate_area, method_table
    from inferaligner.reporting.go_no_go import verdict

    titles = {name: str(entry["title"]) for name, entry in folder.run["methods"].items()}
    found = method_table(folder.records, titles)
    title = "Methods and suites in per cent (▲ ▼ clear against the bare model, ≈ not clear)"
    # Narrow enough for 80 columns with a suite of every kind.
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("method", min_width=13)
    for name, metric in found["columns"]:
        heading = [name.replace("-", "-\n"), metric.partition(": ")[2]]
        table.add_column("\n".join(heading), justify="right")
    for companion in found["companions"]:
        table.add_column(f"harmful\n{companion}", justify="right")
    for title, cells, companions in found["rows"]:
        shown = [
            f"{value.removesuffix(' %')} {mark or ' '}\n"
            f"[dim]{spread.removesuffix(' %').replace(' to ', '–')}  [/dim]"
            for value, spread, mark in cells
        ]
        table.add_row(title, *shown, *(value.removesuffix(" %") for value in companions))
    results().print(table)
    told = verdict(folder.records, titles)
    results().print(
        f"{told.decision.capitalize()}. {told.headline}", style="bold", markup=False, highlight=False
    )
    for check in told.checks:
        results().print(f"• {check.question} {check.answer}. {check.told}", markup=False, highlight=False)
    area = gate_area(rows, told.method)
    if area is not None:
        results().print(
            f"Gate AUROC {area['value']:.3f} ({area['low']:.3f} to {area['high']:.3f}), n = {area['n']}",
            highlight=False,
        )
    judge = RuleJudge()
    results().print(f"Judge: {judge.name}. {judge.agreement}", style="dim", markup=False, highlight=False)


def catalogue_tables() -> Iterator[Table]:
    """Every suite and method there is."""
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
