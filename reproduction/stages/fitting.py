"""Fit: an aligner for the domain model, from the aligned sibling, with the domain's own benign traffic."""

from __future__ import annotations

from inferaligner.fit.strength.steering_choice import PAPER_STRENGTH
from reproduction.commands import inferaligner
from reproduction.run_context import RunContext
from reproduction.stages.training import sibling
from reproduction.training_rows import BENIGN


def fit(run: RunContext) -> None:
    """Runs `inferaligner fit` on the domain model."""
    guide = sibling(run)
    benign = run.store.folder / "rows" / BENIGN
    options: list[object] = ["--benign", f"{run.name}={benign}"]
    options += ["--max-false-open", run.scale.max_false_open, *model_options(run), *run.scale.fit_options]

    def work() -> None:
        inferaligner("fit", run.domain_model, "--aligned", guide, "-o", run.aligner, *options)

    settings = {"aligned": guide, "options": [str(option) for option in options]}
    run.store.stage("fit", settings, work, [run.aligner])
    if "paper" in run.methods and run.family.strength != PAPER_STRENGTH:
        _paper(run, guide)


def _paper(run: RunContext, guide: str) -> None:
    """Fits the paper's gate and constants if its α is not the default; else `evaluate` makes them itself."""

    def work() -> None:
        inferaligner(
            "fit", run.domain_model, "--aligned", guide, "-o", run.paper_aligner, "--paper",
            *model_options(run), *run.scale.fit_options, "--strength", run.family.strength,
        )  # fmt: skip

    settings = {"aligned": guide, "strength": run.family.strength}
    run.store.stage("fit-paper", settings, work, [run.paper_aligner])


def model_options(run: RunContext) -> list[object]:
    """The options that load the family's models."""
    options: list[object] = [] if run.scale.dtype == "auto" else ["--dtype", run.scale.dtype]
    if run.family.template is not None:
        options += ["--chat-template", run.family.template]
    if run.family.trust_remote_code:
        options += ["--trust-remote-code"]
    return options
