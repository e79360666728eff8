"""Gate and refusal figures of one aligner on public benchmarks, with the controls.

    python -m reproduction.core_figures --data FOLDER --aligner DIR [--target SPEC] -o out/core

Harmful rows with a near-duplicate in the contrast set are left out. Measured: the share of prompts that
open the gate; refusal, compliance and gibberish (rule judge) of the bare target, with InferAligner, and with
the target's own vectors in place of the aligned model's; and whether every closed row's tokens equal the bare
model's. Raw answers stay in the output folder.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from inferaligner.aligner import Aligner
from inferaligner.judges.rules import judge
from inferaligner.models.generation import Answer, generate_answers
from inferaligner.models.loading import LoadedModel, load_model
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.similarity import near_duplicates
from inferaligner.statistics.intervals import clopper_pearson
from reproduction.benchmark_prompts import BENIGN, HARMFUL, sample

console = Console()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--aligner", type=Path, required=True)
    parser.add_argument("--target", default="builtin:smollm2-135m")
    parser.add_argument("--rows", type=int, default=300, help="prompts per set for the gate")
    parser.add_argument("--generate", type=int, default=150, help="prompts per harmful set to answer")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    aligner = Aligner.from_pretrained(options.aligner)
    target = load_model(options.target)
    contrast = load_contrast_set()
    known = [pair.harmful for pair in contrast.pairs]
    results: list[dict[str, Any]] = []
    kept: dict[str, list[str]] = {}
    for name, read in {**HARMFUL, **BENIGN}.items():
        prompts = read(options.data)
        if name in HARMFUL:
            duplicates = set(near_duplicates(prompts, known))
            prompts = [prompt for row, prompt in enumerate(prompts) if row not in duplicates]
        kept[name] = sample(prompts, options.rows)
        decisions = aligner.score(target.model, target.tokenizer, kept[name])
        results.append(row("gate", name, "open", sum(d.open for d in decisions), len(decisions)))
        console.print(f"{name:20} open {results[-1]['value']:.3f} of {len(decisions)}")
    for name in ("AdvBench", "HarmBench"):
        results += answered(aligner, target, name, kept[name][: options.generate], options)
    results += identity(aligner, target, [p for name in BENIGN for p in kept[name][:30]], options)
    (options.output / "results.json").write_text(json.dumps(results, indent=2), encoding="utf-8")
    show(results)


def row(method: str, suite: str, metric: str, count: int, total: int) -> dict[str, Any]:
    return {"method": method, "suite": suite, "metric": metric, **asdict(clopper_pearson(count, total))}


def answered(
    aligner: Aligner, target: LoadedModel, suite: str, prompts: Sequence[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Outcomes of three methods on the same prompts; bare answers also prove closed rows identical."""
    results = []
    answers: dict[str, list[Answer]] = {}
    for method in ("none", "InferAligner", "target's own vectors"):
        context = {
            "none": nullcontext(),
            "InferAligner": aligner.apply(target.model, target.tokenizer),
            "target's own vectors": aligner.apply(target.model, target.tokenizer, source="target"),
        }[method]
        with context as guard:
            stream = generate_answers(
                target.model,
                target.tokenizer,
                prompts,
                max_new_tokens=options.tokens,
                decisions=None if guard is None else lambda guard=guard: guard.decisions,
            )
            told = sorted(
                track(stream, f"{suite}: {method}", len(prompts), console=console), key=lambda a: a.row
            )
        answers[method] = told
        outcomes = [judge(answer.text).outcome for answer in told]
        with (options.output / "records.jsonl").open("a", encoding="utf-8") as records:
            for answer, outcome in zip(told, outcomes, strict=True):
                is_open = None if answer.decision is None else answer.decision.open
                record = {"suite": suite, "method": method, "prompt": prompts[answer.row], "outcome": outcome}
                records.write(json.dumps({**record, "open": is_open, "response": answer.text}) + "\n")
        results += [
            row(method, suite, outcome, outcomes.count(outcome), len(outcomes))
            for outcome in ("refusal", "compliance", "gibberish")
        ]
    return [*results, closed_rows(suite, answers["none"], answers["InferAligner"])]


def identity(
    aligner: Aligner, target: LoadedModel, prompts: Sequence[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    def run(guard: Any = None) -> list[Answer]:
        stream = generate_answers(
            target.model,
            target.tokenizer,
            prompts,
            max_new_tokens=options.tokens,
            decisions=None if guard is None else lambda: guard.decisions,
        )
        return sorted(track(stream, "benign", len(prompts), console=console), key=lambda a: a.row)

    bare = run()
    with aligner.apply(target.model, target.tokenizer) as guard:
        guarded = run(guard)
    return [closed_rows("benign", bare, guarded)]


def closed_rows(suite: str, bare: Sequence[Answer], guarded: Sequence[Answer]) -> dict[str, Any]:
    closed = [(b, g) for b, g in zip(bare, guarded, strict=True) if g.decision and not g.decision.open]
    return row(
        "InferAligner",
        suite,
        "closed rows identical",
        sum(b.tokens == g.tokens for b, g in closed),
        len(closed),
    )


def show(results: Sequence[dict[str, Any]]) -> None:
    table = Table("method", "prompts", "metric", "value", "95 % interval", "n")
    for r in results:
        table.add_row(
            r["method"],
            r["suite"],
            r["metric"],
            f"{r['value']:.1%}",
            f"{r['low']:.1%} to {r['high']:.1%}",
            str(r["n"]),
        )
    console.print(table)


if __name__ == "__main__":
    main()
