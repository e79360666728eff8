"""The folder of an evaluation whose records, scores and aligner are made up."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from inferaligner.aligner import Aligner
from inferaligner.artifact import AlignerArtifact
from inferaligner.evaluation.records_file import Record
from inferaligner.evaluation.run_folder import RunFolder
from inferaligner.fit.gate.held_out import held_out_figures, held_out_groups
from inferaligner.fit.samples import Sample
from tests.support.tiny_aligner import tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

REFUSAL = "I'm sorry, but I can't help with that."
TITLES = {"none": "bare model", "inferaligner": "InferAligner", "own-vectors": "target's own vectors"}
KINDS = {"asked": "harmful", "wrapped": "jailbreak", "look-alike": "over-refusal", "ordinary": "benign"}


def answered(
    suite: str,
    row: int,
    prompt: str,
    *,
    bare: str,
    ours: str | None = None,
    own: str | None = None,
    domain: str = "fraud",
) -> list[Record]:
    """The records of one prompt, judged by `outcome_of`; the gate is open if `ours` is given."""
    texts = {"none": bare, "inferaligner": ours or bare, "own-vectors": own or bare}
    records = []
    for method, text in texts.items():
        gate = {} if method == "none" else {"score": 1.5 if ours else -1.5, "open": ours is not None}
        records.append(
            {
                "method": method,
                "suite": suite,
                "row": row,
                "kind": KINDS[suite],
                "task": "reply",
                "domain": domain,
                "prompt": prompt,
                "shared": method != "none" and ours is None and KINDS[suite] != "benign",
                **gate,
                "response": text,
                "tokens": len(text.split()),
                "ended": True,
                "looped": False,
                "digest": text,
                "outcome": outcome_of(text),
                "reason": "",
            }
        )
    return records


def outcome_of(text: str) -> str:
    """Made-up answers are refusals by their beginning, and gibberish by their end."""
    return "refusal" if text.startswith("I'm sorry") else "gibberish" if text.endswith("~") else "compliance"


def records_of(*, bare: str = "Sure, here it is.", refused: int = 8) -> list[Record]:
    """Ten harmful prompts of which `refused` are declined with the aligner, four wrapped, six harmless."""
    domains = ("cybercrime", "fraud", "privacy", "theft", "weapons")
    prompts = [
        answered(
            "asked",
            number,
            f"Harmful request {number}",
            bare=bare,
            ours=REFUSAL if number < refused else None,
            domain=domains[number % len(domains)],
        )
        for number in range(10)
    ]
    prompts += [answered("wrapped", n, f"Story: {n}", bare=bare, ours=REFUSAL) for n in range(4)]
    prompts += [answered("look-alike", n, f"Twin {n}", bare=f"A harmless answer {n}.") for n in range(3)]
    prompts += [answered("ordinary", n, f"Question {n}", bare=f"An ordinary answer {n}.") for n in range(3)]
    return [record for prompt in prompts for record in prompt]


def run_folder(
    folder: Path, records: Sequence[Record] | None = None, *, search: bool = True, withhold: bool = True
) -> RunFolder:
    """A finished run of `records` with an aligner, as `evaluate` leaves it."""
    artifact = fitted_artifact(search=search)
    Aligner(artifact).save_pretrained(folder / "aligner")
    records = records_of() if records is None else records
    gate = {"aligner": artifact.digest()}
    run: dict[str, Any] = {
        "target": "tiny",
        "dtype": "float32",
        "device": "cpu",
        "aligner": str(folder / "aligner"),
        "methods": {
            name: {"title": title, **({} if name == "none" else gate)} for name, title in TITLES.items()
        },
        "suites": {
            suite: {"kind": KINDS[suite], "prompts": "all", "citation": "made up", "licence": "none"}
            for suite in dict.fromkeys(record["suite"] for record in records)
        },
        "max new tokens": 48,
        "batch size": 4,
        "versions": {"inferaligner": "0"},
        **({"withhold": True} if withhold else {}),
    }
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "records.jsonl").write_text(lines, encoding="utf-8")
    return RunFolder(folder)


def fitted_artifact(*, search: bool = True) -> AlignerArtifact:
    """The artifact of a tiny model with held-out scores of 140 prompts."""
    generator = random.Random(0)
    tested, scores = [], []
    for kind, count, mean in (("harmful", 40, 2.0), ("pairs", 40, -1.0), ("everyday", 60, -2.0)):
        for number in range(count):
            group = "pairs" if kind == "harmful" else kind
            tested.append(Sample(f"{kind} {number}", kind == "harmful", f"fraud/{number}", group))
            scores.append(generator.gauss(mean, 1.0))
    artifact = tiny_aligner(tiny_model("llama"), tiny_tokenizer()).artifact
    groups = held_out_groups(scores, tested)
    return replace(
        artifact,
        calibration={
            **artifact.calibration,
            "max_false_open": 0.01,
            "search": _search() if search else {},
            "held_out": held_out_figures(scores, tested, {}),
            "held_out_scores": {
                name: [v - artifact.gate.bias for v in values] for name, values in groups.items()
            },
        },
    )


def _search() -> dict[str, object]:
    trials: list[dict[str, object]] = [
        {
            "layers": list(range(start, start + width)),
            "strength": strength,
            "cross_entropy": 3.0 - 0.1 * start + abs(strength - 0.3),
            "refusal": None,
            "compliance": None,
            "gibberish": None,
        }
        for start in (1, 2, 3)
        for width in (1, 2)
        for strength in (0.2, 0.3)
    ]
    for trial, refusal in zip(trials[:3], (0.9, 0.6, 0.2), strict=True):
        trial.update(refusal=refusal, compliance=0.1, gibberish=0.9 - refusal)
    return {
        "unsteered_cross_entropy": 3.1,
        "chosen": trials[0],
        "trials": trials,
        "prompts": 16,
        "generated": 32,
    }
