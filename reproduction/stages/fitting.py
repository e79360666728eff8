"""Fit: an aligner for the domain model, from the aligned sibling, for the domain's own traffic."""

from __future__ import annotations

from inferaligner.fit.strength.choice import PAPER_STRENGTH
from reproduction.commands import inferaligner
from reproduction.mixture import BENIGN
from reproduction.run_context import RunContext
from reproduction.stages.training import sibling


def fit(cell: RunContext) -> None:
    """`inferaligner fit` on the domain model."""
    guide = sibling(cell)
    benign = cell.workplace.folder / "rows" / BENIGN
    options: list[object] = ["--benign", f"{cell.name}={benign}"]
    options += ["--max-false-open", cell.scale.max_false_open, *model_options(cell), *cell.scale.fit_options]

    def work() -> None:
        inferaligner("fit", cell.domain_model, "--aligned", guide, "-o", cell.aligner, *options)

    settings = {"aligned": guide, "options": [str(option) for option in options]}
    cell.workplace.stage("fit", settings, work, [cell.aligner])
    if "paper" in cell.methods and cell.family.strength != PAPER_STRENGTH:
        _paper(cell, guide)


def _paper(cell: RunContext, guide: str) -> None:
    """The paper's gate and constants where its α is not the usual one; else `evaluate` makes them itself."""

    def work() -> None:
        inferaligner(
            "fit", cell.domain_model, "--aligned", guide, "-o", cell.paper_aligner, "--paper",
            *model_options(cell), *cell.scale.fit_options, "--strength", cell.family.strength,
        )  # fmt: skip

    settings = {"aligned": guide, "strength": cell.family.strength}
    cell.workplace.stage("fit-paper", settings, work, [cell.paper_aligner])


def model_options(cell: RunContext) -> list[object]:
    """How to load the family's models."""
    options: list[object] = [] if cell.scale.dtype == "auto" else ["--dtype", cell.scale.dtype]
    if cell.family.template is not None:
        options += ["--chat-template", cell.family.template]
    if cell.family.trust_remote_code:
        options += ["--trust-remote-code"]
    return options
