"""`inferaligner inspect DIR`: shows an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from inferaligner.cli.model_options import AsJson, load_artifact
from inferaligner.cli.output_file import check_output_file, write_whole
from inferaligner.cli.terminal import note, print_json, results
from inferaligner.errors import InputError

Place = Annotated[
    str,
    typer.Argument(metavar="DIR", help="Folder that `fit` wrote, or the hub id of an aligner."),
]


def inspect(
    place: Place,
    plots: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write figures of vectors, gates and the strength search here, as PNG."
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a page with the figures of gate, vectors and strength search to this file.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show an aligner: its settings, the models and prompts of the fit, and the figures of the fit."""
    if plots is not None and plots.exists() and not plots.is_dir():
        raise InputError(f"--plots {plots} is a file; expected a folder.")
    if html is not None:
        check_output_file(html, str(Path(place) / "aligner.json"))
    artifact = load_artifact(place)

    from inferaligner.cli import artifact_view

    written: list[Path] = []
    if plots is not None:
        from inferaligner.cli.artifact_plots import draw

        written = draw(artifact, plots)
    if html is not None:
        from inferaligner.reporting.artifact_page import artifact_page

        write_whole(html, artifact_page(artifact).encode("utf-8", "replace"))
        written.append(html)
    if as_json:
        print_json(artifact_view.as_json(artifact))
    else:
        for table in [*artifact_view.tables(artifact), artifact_view.layer_chart(artifact)]:
            results().print(table)
    for file in written:
        note(f"Written: {file}")
