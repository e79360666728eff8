"""`python -m reproduction`: the paper's experiments, one command each.

run NAME    train, fit, evaluate, report; continues an interrupted run
check       every stage of every recipe of a scale, with the real architectures in small dimensions
list        experiments and families
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from inferaligner.errors import InferAlignerError
from reproduction.stage_store import OutOfTime, console

app = typer.Typer(
    name="reproduction",
    help="The paper's experiments as recipes: one declarative file each, the same at every scale.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_WORK, _RESULTS = Path("out/reproduction"), Path("reproduction/results")

Scale = Annotated[
    str, typer.Option("--scale", metavar="NAME", help="small, gpu, paper, or a YAML file of your own.")
]
Families = Annotated[
    list[str] | None,
    typer.Option(
        "--family",
        metavar="NAME",
        help="A family of the scale, or all. May be repeated. Default: the scale's first family.",
    ),
]


@app.command()
def run(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An experiment; see `list`.")],
    scale: Scale = "small",
    family: Families = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder of public sets; or set INFERALIGNER_DATA.")
    ] = None,
    work: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of models and records.")] = Path(
        "out/reproduction"
    ),
    results: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Folder of JSON, tables and figures.")
    ] = Path("reproduction/results"),
    redo: Annotated[
        list[str] | None, typer.Option(metavar="STAGE", help="Run this stage again. May be repeated.")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(min=0, metavar="N", help="Stop after N minutes; the same command continues the run."),
    ] = None,
) -> None:
    """Run an experiment, or continue it."""
    from reproduction.experiment_stages import Request, run_experiment
    from reproduction.recipe import read_scale_config
    from reproduction.run_context import Place

    folder = data or (Path(os.environ["INFERALIGNER_DATA"]) if os.environ.get("INFERALIGNER_DATA") else None)
    place = Place(folder, work, results)
    run_experiment(
        Request(name, tuple(family or ()), place, tuple(redo or ()), minutes), read_scale_config(scale)
    )


@app.command()
def check(
    scale: Scale = "paper",
    family: Families = None,
    name: Annotated[
        list[str] | None,
        typer.Option("--experiment", metavar="NAME", help="An experiment. May be repeated. Default: all."),
    ] = None,
    work: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder to write to.")] = Path("out/check"),
) -> None:
    """Run every recipe of a scale through all stages, with made-up rows and models of the real architectures
    with a few thousand random weights."""
    from reproduction.dry_run import check_recipes

    check_recipes(scale, tuple(family or ("all",)), tuple(name or ()), work)


@app.command("list")
def list_recipes(scale: Scale = "small") -> None:
    """List the experiments, and the families of a scale."""
    from rich.console import Console
    from rich.table import Table

    from reproduction.recipe import experiment_names, read_experiment, read_scale

    table = Table("experiment", "kind", "title")
    for name in experiment_names():
        experiment = read_experiment(name)
        table.add_row(name, experiment.kind, experiment.title)
    Console().print(table)
    table = Table("family", "target", "aligned")
    for name, family in read_scale(scale).families.items():
        table.add_row(name, family.target, family.aligned or "trained by recipe")
    Console().print(table)


def main() -> None:
    """Exit codes: 0 success, 2 an error that the user can correct, 3 out of time, 130 interrupted."""
    try:
        app(prog_name="python -m reproduction")
    except OutOfTime as error:
        console.print(str(error))
        sys.exit(3)
    except InferAlignerError as error:
        console.print(f"[bold red]Error:[/] {error}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except KeyboardInterrupt:
        console.print("Interrupted.")
        sys.exit(130)


if __name__ == "__main__":
    main()
