"""The stages of each kind of experiment, in their order."""

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
from reproduction.stages import ablation, confound, evaluation, fitting, reporting, training
from reproduction.tables import families_table, table_one, time_table, times


@dataclass(frozen=True)
class Request:
    """The options of `python -m reproduction run`."""

    name: str
    families: tuple[str, ...]
    place: Place
    redo: tuple[str, ...] = ()
    minutes: float | None = None


def run_experiment(request: Request, config: ScaleConfig) -> None:
    """Runs the unfinished stages of an experiment, for every requested family.

    Raises:
        InputError: There is no such experiment, or its recipe has changed since a stage was finished.
        OutOfTime: The minutes were not enough for all stages.
    """
    require_matplotlib()
    experiment = config.experiment(request.name)
    clock = Clock(request.minutes)
    every = isinstance(experiment, Summary) and experiment.families == "all"
    families = chosen_families(config.scale, request.families or (("all",) if every else ()))
    if isinstance(experiment, Summary):
        _summary(request, experiment, config, families)
        return
    for family in families:
        store = StageStore(request.place.work / config.name / family / request.name, clock)
        if request.redo:
            store.forget(request.redo)
        if isinstance(experiment, Domain):
            run_domain(RunContext(request.name, experiment, config, family, request.place, store))
            continue
        of = experiment.of
        run = RunContext(of, config.domain(of), config, family, request.place, store.of(of))
        run_domain(run, until="fit")
        if isinstance(experiment, Ablation):
            ablation.ablate(request.name, experiment, run, store)
        else:
            confound.confound(request.name, experiment, run, store)


def run_domain(run: RunContext, until: Literal["fit", "report"] = "report") -> None:
    """The stages of a domain experiment: rows, domain model, aligner, baselines, evaluation, report."""
    training.rows(run)
    training.domain(run)
    fitting.fit(run)
    if until == "fit":
        return
    if "safety-sft" in run.methods:
        training.safety_sft(run)
    if "domain-chat" in run.methods:
        training.domain_chat(run)
    evaluation.evaluate(run)
    reporting.report(run)


def chosen_families(scale: Scale, asked: tuple[str, ...]) -> list[str]:
    """The requested families; the scale's first one if none is requested.

    Raises:
        InputError: The scale has no such family.
    """
    if "all" in asked:
        return list(scale.families)
    for name in asked:
        if name not in scale.families:
            raise InputError(
                f"There is no family {name!r}. Expected all, or some of {', '.join(scale.families)}."
            )
    return list(asked) or list(scale.families)[:1]


def _summary(request: Request, experiment: Summary, config: ScaleConfig, families: list[str]) -> None:
    """Writes one table of the finished experiments, and prints the commands that run the missing ones."""
    folder = request.place.results / config.name
    found: dict[str, list[dict[str, Any]]] = {}
    for family in families:
        for name in experiment.of:
            file = folder / f"{name}-{family}.json"
            if file.is_file():
                found.setdefault(family, []).append(json.loads(file.read_text("utf-8")))
            else:
                console.print(
                    f"{name} on {family} has not been run yet: python -m reproduction run {name} "
                    f"--scale {config.name} --family {family}",
                    soft_wrap=True,
                )
    if not found:
        raise InputError(
            f"No experiment that {request.name} summarizes has been run; the commands are above."
        )
    if experiment.shows == "families":
        page, svg = families_table([run for cells in found.values() for run in cells])
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
