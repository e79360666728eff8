"""Which stages an experiment has, in which order."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from inferaligner.errors import InputError
from inferaligner.reporting import figures
from inferaligner.reporting.figures import require_matplotlib
from inferaligner.storage.atomic_io import replace_file
from reproduction.recipe import Ablation, Domain, Scale, ScaleConfig, Summary
from reproduction.run_context import Place, RunContext
from reproduction.stage_store import Clock, StageStore, console
from reproduction.stages import ablating, confounding, evaluation, fitting, reporting, training
from reproduction.tables import families_table, table_one, time_table, times


@dataclass(frozen=True)
class Request:
    """What a user asks for; see `python -m reproduction run --help`."""

    name: str
    families: tuple[str, ...]
    place: Place
    redo: tuple[str, ...] = ()
    minutes: float | None = None


def run_experiment(request: Request, book: ScaleConfig) -> None:
    """Every stage that is not finished, of every family asked for.

    Raises:
        InputError: a name that is none, or a recipe that has changed under finished stages.
        OutOfTime: there was more to do than the minutes allow.
    """
    require_matplotlib()
    experiment = book.experiment(request.name)
    clock = Clock(request.minutes)
    every = isinstance(experiment, Summary) and experiment.families == "all"
    families = chosen_families(book.scale, request.families or (("all",) if every else ()))
    if isinstance(experiment, Summary):
        _summary(request, experiment, book, families)
        return
    for family in families:
        workplace = StageStore(request.place.work / book.name / family / request.name, clock)
        if request.redo:
            workplace.forget(request.redo)
        if isinstance(experiment, Domain):
            run_domain(RunContext(request.name, experiment, book, family, request.place, workplace))
            continue
        of = experiment.of
        cell = RunContext(of, book.domain(of), book, family, request.place, workplace.of(of))
        run_domain(cell, until="fit")
        if isinstance(experiment, Ablation):
            ablating.ablate(request.name, experiment, cell, workplace)
        else:
            confounding.confound(request.name, experiment, cell, workplace)


def run_domain(cell: RunContext, until: Literal["fit", "report"] = "report") -> None:
    """Rows, domain model, Safety SFT, aligner, evaluation, report."""
    training.rows(cell)
    training.domain(cell)
    fitting.fit(cell)
    if until == "fit":
        return
    if "safety-sft" in cell.methods:
        training.safety_sft(cell)
    if "domain-chat" in cell.methods:
        training.domain_chat(cell)
    evaluation.evaluate(cell)
    reporting.report(cell)


def chosen_families(scale: Scale, asked: tuple[str, ...]) -> list[str]:
    """The families asked for; the first if none is.

    Raises:
        InputError: the scale has no such family.
    """
    if "all" in asked:
        return list(scale.families)
    for name in asked:
        if name not in scale.families:
            raise InputError(
                f"There is no family {name!r}. Expected all, or some of {', '.join(scale.families)}."
            )
    return list(asked) or list(scale.families)[:1]


def _summary(request: Request, experiment: Summary, book: ScaleConfig, families: list[str]) -> None:
    """What is finished, in one table; what is missing is named, with the command that runs it."""
    folder = request.place.results / book.name
    found: dict[str, list[dict[str, Any]]] = {}
    for family in families:
        for name in experiment.of:
            file = folder / f"{name}-{family}.json"
            if file.is_file():
                found.setdefault(family, []).append(json.loads(file.read_text("utf-8")))
            else:
                console.print(
                    f"{name} on {family} has not been run yet: python -m reproduction run {name} "
                    f"--scale {book.name} --family {family}",
                    soft_wrap=True,
                )
    if not found:
        raise InputError(f"Nothing that {request.name} shows has been run; the commands are above.")
    if experiment.shows == "families":
        page, svg = families_table([cell for cells in found.values() for cell in cells])
        _write(folder, request.name, page, svg)
        return
    for family, cells in found.items():
        if experiment.shows == "table":
            _write(folder, f"{request.name}-{family}", table_one(cells), None)
            continue
        timed = times(cells[0])
        page = "\n".join([f"# {experiment.title}: {cells[0]['title']}", "", *time_table(timed), ""])
        svg = figures.time_bars(timed, label="seconds per 1,000 tokens", name="inference-time")
        _write(folder, f"{request.name}-{family}", page, svg)


def _write(folder: Path, name: str, page: str, svg: str | None) -> None:
    replace_file(folder / f"{name}.md", page.encode())
    if svg is not None:
        replace_file(folder / f"{name}.svg", svg.encode())
    console.print(page, markup=False, highlight=False, soft_wrap=True)
