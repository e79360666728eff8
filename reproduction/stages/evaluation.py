"""Evaluation with `inferaligner evaluate`: harm and over-refusal, utility, and the base model's utility.

Harm and utility are two runs on the domain model, because word problems need longer answers than refusals.
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


def evaluate(run: RunContext) -> None:
    """Runs all three evaluations."""
    given = {
        "safety-sft": run.safety_model,
        "domain-chat": run.chat_model,
        "paper": run.paper_aligner,
    }
    methods = [
        f"{name}={given[name]}" if name in given and given[name].exists() else name for name in run.methods
    ]
    scale = run.scale
    _evaluate(run, BASE, answering(run), None, run.utility, [], scale.utility)
    _evaluate(run, SAFETY, str(run.domain_model), run.aligner, scale.safety_suites, methods, scale.safety)
    _evaluate(run, UTILITY, str(run.domain_model), run.aligner, run.utility, methods, scale.utility)


def _evaluate(
    run: RunContext,
    name: str,
    target: str,
    aligner: Path | None,
    suites: Counts,
    methods: Sequence[str],
    measured: Measured,
) -> None:
    options: list[object] = ["-o", run.store.folder / name]
    options += repeated("--suite", suite_specs(suites)) + repeated("--method", ["none", *methods])
    options += ["--max-new-tokens", measured.tokens, "--seed", run.scale.seed, *model_options(run)]
    options += ["--timing" if measured.timing and aligner is not None else "--no-timing"]
    if measured.quick:
        options += ["--quick"]
    if aligner is not None:
        options += ["--aligner", aligner]
    if run.place.data is not None:
        options += ["--data", run.place.data]

    def work() -> None:
        inferaligner("evaluate", target, *options)

    settings = {"target": target, "options": [str(option) for option in options]}
    results = run.store.folder / name / "results.json"
    run.store.stage(name, settings, work, [results])
