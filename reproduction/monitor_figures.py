"""The effect of an answer monitor beside a gate, on public benchmarks: counts alone, without any answer.

    python -m reproduction.monitor_figures --data FOLDER --aligner DIR [--target SPEC] -o out/monitor

An aligner without a monitor gets one first, fitted as `fit --monitor` does, and is written to OUTPUT/aligner.
Then the target answers in shadow mode, so that every answer is the bare model's: how many prompts open the
gate, and of the others, how many answers open the monitor. Harmful rows with a near-duplicate in the contrast
set are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from inferaligner.aligner import Aligner
from inferaligner.cli.progress import RichStages
from inferaligner.fit.context import FitContext, FitModel
from inferaligner.fit.monitor.monitor_fit import fit_monitor
from inferaligner.fit.options import MONITOR_TOKENS, FitOptions
from inferaligner.fit.samples import samples_from_contrast
from inferaligner.judges.rules import judge
from inferaligner.models.generation import generate_batches
from inferaligner.models.loading import LoadedModel, load_model
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.similarity import near_duplicates
from inferaligner.statistics.intervals import clopper_pearson
from reproduction.benchmark_prompts import BENIGN, HARMFUL, sample


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--aligner", type=Path, required=True)
    parser.add_argument("--target", default="builtin:smollm2-135m")
    parser.add_argument("--rows", type=int, default=100, help="prompts per set")
    parser.add_argument("--tokens", type=int, default=MONITOR_TOKENS)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    target = load_model(options.target)
    aligner = with_monitor(Aligner.from_pretrained(options.aligner), target, options)
    known = [pair.harmful for pair in load_contrast_set().pairs]
    results: dict[str, Any] = {"monitor": aligner.artifact.calibration["monitor"], "sets": {}}
    for name, read in {**HARMFUL, **BENIGN}.items():
        prompts = read(options.data)
        if name in HARMFUL:
            duplicates = set(near_duplicates(prompts, known))
            prompts = [prompt for row, prompt in enumerate(prompts) if row not in duplicates]
        results["sets"][name] = counts(aligner, target, sample(prompts, options.rows), options.tokens)
        print(name, results["sets"][name], flush=True)
        (options.output / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")


def with_monitor(aligner: Aligner, target: LoadedModel, options: argparse.Namespace) -> Aligner:
    """The aligner itself if it has a monitor, else with one, saved in the output folder."""
    artifact = aligner.artifact
    if artifact.monitor is not None:
        return aligner
    aligner.check(target.model, target.tokenizer)
    context = FitContext(
        FitModel(target.model, target.tokenizer, options.target),
        None,
        samples_from_contrast(load_contrast_set()),
        lambda answer: judge(answer).outcome,
        FitOptions(monitor=True, monitor_tokens=options.tokens, system=artifact.provenance.system_prompt),
        progress=RichStages(),
    )
    monitor, told = fit_monitor(context, artifact.gate, artifact.steering.layers)
    made = Aligner(replace(artifact, monitor=monitor, calibration={**artifact.calibration, "monitor": told}))
    made.save_pretrained(options.output / "aligner")
    return made


def counts(aligner: Aligner, target: LoadedModel, prompts: Sequence[str], tokens: int) -> dict[str, Any]:
    """Prompts that open the gate, and answers to the others that open the monitor."""
    decisions = aligner.score(target.model, target.tokenizer, prompts)
    closed = [prompt for prompt, decision in zip(prompts, decisions, strict=True) if not decision.open]
    numbers: list[int] = []
    with aligner.apply(target.model, mode="never") as guard:
        batches = generate_batches(target.model, target.tokenizer, closed, max_new_tokens=tokens + 1)
        for _ in batches if closed else ():
            numbers += [d.answer_token for d in guard.decisions if d.answer_token is not None]
    return {
        "prompts": len(prompts),
        "open at the prompt": len(prompts) - len(closed),
        "closed": len(closed),
        "opened by the monitor": asdict(clopper_pearson(len(numbers), len(closed))),
        "median token": sorted(numbers)[len(numbers) // 2] if numbers else None,
    }


if __name__ == "__main__":
    main()
