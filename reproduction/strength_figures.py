"""The chosen steering against the paper's constant on ranges of layers, behind the same gate.

    python -m reproduction.strength_figures --data FOLDER --aligner DIR [--target SPEC] -o out/strength

The paper steers with α = 4 on unit SSVs at all positions, and leaves the layers to the reader. Here a grid of
ranges stands for that choice. Prompts took no part in any choice: harmful ones of the contrast set's test
part, and samples of AdvBench and HarmBench without near-duplicates of the contrast set. The gate decides
once for all settings; a closed prompt keeps the bare model's answer, which is what the closed gate gives
(tested elsewhere). An answer counts if the rule judge calls it a refusal, which gibberish is not.

Differences to each fixed setting are paired by prompt, with McNemar's exact test. The best of the grid is
picked with these very prompts, so the comparison with it favours the paper. Finished settings are kept in the
output folder with the raw answers, and not run again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from inferaligner.aligner import Aligner
from inferaligner.artifact import AlignerArtifact
from inferaligner.evaluation.paired_statistics import compare
from inferaligner.fit.strength.steering_choice import PAPER_STRENGTH, paper_layers
from inferaligner.judges.rules import judge
from inferaligner.models.generation import generate_answers
from inferaligner.models.loading import LoadedModel, load_model
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.prompts.similarity import near_duplicates
from inferaligner.statistics.intervals import clopper_pearson
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import SteeringPlan
from reproduction.benchmark_prompts import HARMFUL, sample

console = Console()
BARE, CHOSEN = "not steered", "chosen by fit"
OUTCOMES = ("refusal", "compliance", "gibberish")


@dataclass(frozen=True)
class Prompt:
    """One unseen harmful prompt, and whether it opens the gate."""

    suite: str
    text: str
    open: bool


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--aligner", type=Path, required=True)
    parser.add_argument("--target", default="builtin:smollm2-135m")
    parser.add_argument("--rows", type=int, default=80, help="prompts per set")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    aligner = Aligner.from_pretrained(options.aligner)
    artifact = aligner.artifact
    target = load_model(options.target)
    prompts = gated(aligner, target, unseen(options.data, options.rows))
    console.print(f"{sum(p.open for p in prompts)} of {len(prompts)} harmful prompts open the gate")
    outcomes = {BARE: answered(None, prompts, target, options, BARE, range(len(prompts)))}
    opened = [row for row, prompt in enumerate(prompts) if prompt.open]
    for name, setting in settings(artifact).items():
        plan = SteeringPlan(artifact.gate, setting.additions(), setting.steering.positions)
        steered = answered(plan, prompts, target, options, name, opened)
        outcomes[name] = {**outcomes[BARE], **steered}
    found = figures(prompts, outcomes)
    seconds = (artifact.calibration.get("search") or {}).get("seconds")
    told = {"aligner": artifact.digest(), "seconds from vectors to setting": seconds, "results": found}
    (options.output / "results.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
    show(found)
    console.print(f"From fitted vectors to the chosen setting: {seconds} s")


def unseen(data: Path, rows: int) -> dict[str, list[str]]:
    """Harmful prompts by set."""
    contrast = load_contrast_set()
    known = [pair.harmful for pair in contrast.pairs]
    own = [p.text for p in contrast.part("test", wrapped=False) if p.harmful]
    found = {"contrast set, test part": sample(own, rows)}
    for name in ("AdvBench", "HarmBench"):
        prompts = HARMFUL[name](data)
        duplicates = set(near_duplicates(prompts, known))
        found[name] = sample([p for row, p in enumerate(prompts) if row not in duplicates], rows)
    return found


def gated(aligner: Aligner, target: LoadedModel, suites: Mapping[str, Sequence[str]]) -> list[Prompt]:
    return [
        Prompt(suite, text, decision.open)
        for suite, texts in suites.items()
        for text, decision in zip(texts, aligner.score(target.model, target.tokenizer, texts), strict=True)
    ]


def settings(artifact: AlignerArtifact) -> dict[str, AlignerArtifact]:
    """The chosen setting, and the paper's constant on ranges of layers."""
    found = {CHOSEN: artifact}
    for layers in paper_ranges(artifact):
        found[f"α = 4, layers {layers[0]}–{layers[-1]}"] = artifact.with_steering(
            layers=layers, strength=PAPER_STRENGTH, norm="unit", positions="all"
        )
    return found


def paper_ranges(artifact: AlignerArtifact) -> list[tuple[int, ...]]:
    """Ranges between the quarters of the depth, from the gate's layer on, and the range of `fit --paper`."""
    depth = len(artifact.ssv)
    quarters = [0, round(depth / 4), round(depth / 2), round(3 * depth / 4), depth]
    starts = sorted({*quarters[:3], artifact.gate.last_layer})
    ranges = [tuple(range(start, end)) for start in starts for end in quarters[2:] if end - start >= 4]
    return list(dict.fromkeys([paper_layers(artifact.gate, depth), *ranges]))


def answered(
    plan: SteeringPlan | None,
    prompts: Sequence[Prompt],
    target: LoadedModel,
    options: argparse.Namespace,
    name: str,
    rows: Sequence[int],
) -> dict[int, str]:
    """Outcome by row, of every row steered; read from the output folder where it is there."""
    file = options.output / "answers.jsonl"
    kept = {}
    if file.exists():
        for line in file.read_text(encoding="utf-8").splitlines():
            told = json.loads(line)
            key = told["setting"], told["tokens"], told["prompt"]
            kept[key] = told["outcome"]
    missing = [row for row in rows if (name, options.tokens, prompts[row].text) not in kept]
    with nullcontext() if plan is None else Guard(target.model, plan, "always"):
        stream = generate_answers(
            target.model,
            target.tokenizer,
            [prompts[row].text for row in missing],
            max_new_tokens=options.tokens,
            batch_size=64,
        )
        for answer in track(stream, name, len(missing), console=console) if missing else ():
            text, outcome = prompts[missing[answer.row]].text, judge(answer.text).outcome
            kept[name, options.tokens, text] = outcome
            told = {"setting": name, "tokens": options.tokens, "prompt": text, "outcome": outcome}
            with file.open("a", encoding="utf-8") as records:
                records.write(json.dumps({**told, "response": answer.text}) + "\n")
    return {row: kept[name, options.tokens, prompts[row].text] for row in rows}


def figures(prompts: Sequence[Prompt], outcomes: Mapping[str, Mapping[int, str]]) -> list[dict[str, Any]]:
    """Per setting and set: shares with intervals; and over all sets the difference to the chosen setting."""
    suites = [*dict.fromkeys(prompt.suite for prompt in prompts), "all"]
    found = []
    for name, told in outcomes.items():
        for suite in suites:
            rows = [row for row, p in enumerate(prompts) if suite in (p.suite, "all")]
            entry: dict[str, Any] = {"setting": name, "suite": suite, "n": len(rows)}
            for outcome in OUTCOMES:
                rate = clopper_pearson(sum(told[row] == outcome for row in rows), len(rows))
                entry[outcome] = {"value": rate.value, "low": rate.low, "high": rate.high}
            ours, theirs = ([of[row] == "refusal" for row in rows] for of in (outcomes[CHOSEN], told))
            found.append({**entry, "difference": asdict(compare(ours, theirs))})
    return found


def show(found: Sequence[dict[str, Any]]) -> None:
    table = Table("setting", "prompts", "fluent refusals", "95 % interval", "gibberish", "chosen - this", "p")
    for entry in found:
        rate, gap = entry["refusal"], entry["difference"]
        table.add_row(
            entry["setting"],
            f"{entry['suite']} ({entry['n']})",
            f"{rate['value']:.1%}",
            f"{rate['low']:.1%} to {rate['high']:.1%}",
            f"{entry['gibberish']['value']:.1%}",
            f"{gap['value']:+.1%} ({gap['low']:+.1%} to {gap['high']:+.1%})",
            f"{gap['p']:.2g}",
        )
    console.print(table)


if __name__ == "__main__":
    main()
