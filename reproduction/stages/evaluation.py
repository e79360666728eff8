"""Evaluate: harm and over-refusal, utility, and the base model's utility, with `inferaligner evaluate`.

Two runs on the domain model, because word problems need longer answers than refusals do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reproduction.commands import inferaligner, repeated
from reproduction.recipe import Measured
from reproduction.run_context import Counts, RunContext, suite_specs
from reproduction.stages.fitting import model_options
from reproduction.stages.training import answering

SAFETY, UTILITY, BASE = "evaluate-safety", "evaluate-utility", "evaluate-base"


def evaluate(cell: RunContext) -> None:
    """All three runs."""
    given = {
        "safety-sft": cell.safety_model,
        "domain-chat": cell.chat_model,
        "paper": cell.paper_aligner,
    }
    methods = [
        f"{name}={given[name]}" if name in given and given[name].exists() else name for name in cell.methods
    ]
    scale = cell.scale
    _run(cell, BASE, answering(cell), None, cell.utility, [], scale.utility)
    _run(cell, SAFETY, str(cell.domain_model), cell.aligner, scale.safety_suites, methods, scale.safety)
    _run(cell, UTILITY, str(cell.domain_model), cell.aligner, cell.utility, methods, scale.utility)


def _run(
    cell: RunContext,
    name: str,
    target: str,
    aligner: Path | None,
    suites: Counts,
    methods: Sequence[str],
    measured: Measured,
) -> None:
    options: list[object] = ["-o", cell.workplace.folder / name]
    options += repeated("--suite", suite_specs(suites)) + repeated("--method", ["none", *methods])
    options += ["--max-new-tokens", measured.tokens, "--seed", cell.scale.seed, *model_options(cell)]
    options += ["--timing" if measured.timing and aligner is not None else "--no-timing"]
    if measured.quick:
        options += ["--quick"]
    if aligner is not None:
        options += ["--aligner", aligner]
    if cell.place.data is not None:
        options += ["--data", cell.place.data]

    def work() -> None:
        inferaligner("evaluate", target, *options)

    settings = {"target": target, "options": [str(option) for option in options]}
    results = cell.workplace.folder / name / "results.json"
    cell.workplace.stage(name, settings, work, [results])
