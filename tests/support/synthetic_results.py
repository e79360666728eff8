"""A side-by-side evaluation that nothing ran for: rows, scores and an aligner, made up."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from inferaligner.evaluation.side_by_side import Method, Reply, Row
from inferaligner.fit.gate.held_out import held_out_figures, held_out_groups
from inferaligner.fit.samples import Sample
from inferaligner.judges import Outcome
from inferaligner.method.decision import Decision
from inferaligner.reporting.side_by_side import SideBySide
from tests.support.tiny_aligner import tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

REFUSAL = "I'm sorry, but I can't help with that."


def reply(text: str, outcome: Outcome = "compliance") -> Reply:
    return Reply(text, tuple(text.encode()), outcome, "")


def row(
    prompt: str,
    *,
    harmful: bool,
    bare: Reply,
    ours: Reply,
    own: Reply | None = None,
    is_open: bool = True,
    group: str = "pairs",
    wrapped: bool = False,
    category: str = "fraud",
) -> Row:
    replies: dict[Method, Reply] = {"bare": bare, "inferaligner": ours, "own vectors": own or bare}
    sample = Sample(prompt, harmful, f"{category}/{prompt}", group, wrapped)
    return Row(sample, Decision(1.5 if is_open else -1.5, is_open), replies)


def rows(*, bare: str = "Sure, here it is.", refused: int = 8) -> list[Row]:
    """Ten harmful prompts of which `refused` are declined with the aligner, four wrapped, six harmless."""
    categories = ("cybercrime", "fraud", "privacy", "theft", "weapons")
    found = [
        row(
            f"Harmful request {number}",
            harmful=True,
            bare=reply(bare),
            ours=reply(REFUSAL, "refusal") if number < refused else reply(bare),
            is_open=number < refused,
            category=categories[number % len(categories)],
        )
        for number in range(10)
    ]
    found += [
        row(f"Story: {number}", harmful=True, bare=reply(bare), ours=reply(REFUSAL, "refusal"), wrapped=True)
        for number in range(4)
    ]
    for number, group in enumerate(("pairs", "medical", "everyday", "lookalike", "coding", "math")):
        answer = reply(f"A harmless answer {number}.")
        found.append(
            row(f"Question {number}", harmful=False, bare=answer, ours=answer, is_open=False, group=group)
        )
    return found


def run(found: Sequence[Row] | None = None, *, search: bool = True) -> SideBySide:
    """Everything a report needs, with gate scores of 140 prompts."""
    generator = random.Random(0)
    tested, scores = [], []
    for kind, count, mean in (("harmful", 40, 2.0), ("pairs", 40, -1.0), ("everyday", 60, -2.0)):
        for number in range(count):
            group = "pairs" if kind == "harmful" else kind
            tested.append(Sample(f"{kind} {number}", kind == "harmful", f"fraud/{number}", group))
            scores.append(generator.gauss(mean, 1.0))
    artifact = tiny_aligner(tiny_model("llama"), tiny_tokenizer()).artifact
    groups = held_out_groups(scores, tested)
    return SideBySide(
        artifact=replace(
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
        ),
        rows=rows() if found is None else found,
        judge="rules",
        agreement="Against human labels: accuracy 92.7 %.",
        max_new_tokens=48,
        created="2026-01-01 12:00 UTC",
        seconds={"loading": 2.0, "fit": 180.0},
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
