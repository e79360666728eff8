"""Guidance across families, measured: refusals of a target under several guides, on prompts never used.

    python -m reproduction.cross_family --target builtin:smollm2-135m --sibling builtin:smollm2-135m-aligned \
        --other out/gemma-aligned/adapter -o out/cross/smollm2

The target's own vectors, its aligned sibling's, those of another family through the map, and vectors learned
from the other family's answers. Each guide gets the layers and the strength at which an aligned model's
answers to other prompts are likeliest, one setting for each of two blocks of layers, and both are generated
with. Every row is steered, no gate. Counts by the rule judge; no answer is shown, and only refusals are kept.
What was done is kept in OUTPUT, and an interrupted run goes on from there.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inferaligner.fit.samples import Sample, samples_from_contrast
from inferaligner.fit.strength.teacher_forcing import TeacherForcing
from inferaligner.fit.transfer.answer_vectors import answer_vectors
from inferaligner.fit.transfer.linear_map import FOLDS, carry_over
from inferaligner.judges.rules import judge
from inferaligner.method.activations import record_activations
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.method.vectors import cosine, mean_difference
from inferaligner.models.anatomy import dissect
from inferaligner.models.generation import generate_answers
from inferaligner.models.loading import LoadedModel, load_model
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.statistics.intervals import clopper_pearson
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import SteeringPlan

OUTCOMES = ("refusal", "compliance", "gibberish")
STRENGTHS = (0.25, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
FIRST, WIDE = 0.55, 4  # share of the depth at which steering begins; layers of the wider block
SCORED = 16

Vectors = Mapping[int, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", required=True)
    parser.add_argument("--sibling", required=True, help="aligned model of the target's family")
    parser.add_argument("--other", required=True, help="aligned model of another family")
    parser.add_argument("--fitted", type=int, default=150, help="prompts of each kind for vectors and map")
    parser.add_argument("--learned", type=int, default=64, help="refusals to learn from")
    parser.add_argument("--rows", type=int, default=32, help="unseen harmful prompts")
    parser.add_argument("--longest", type=int, default=200, help="characters of a prompt")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    drawn, asked, unseen = prompts(options)
    texts = [sample.text for sample in drawn]
    acts = {
        name: activations(options.output / f"{name}.pt", spec, texts)
        for name, spec in (("target", options.target), ("sibling", options.sibling), ("other", options.other))
    }
    said = {
        name: refusals(options.output / f"{name}.json", spec, asked, options.tokens)
        for name, spec in (("sibling", options.sibling), ("other", options.other))
    }
    harmful = torch.tensor([sample.harmful for sample in drawn])
    own, sibling, other = (mean_difference(values[harmful], values[~harmful]) for values in acts.values())
    carried = carry_over(
        other,
        acts["other"],
        acts["target"],
        [sample.sort for sample in drawn],
        [sample.fold(FOLDS) for sample in drawn],
        match="depth",
    )
    target = load_model(options.target, dtype="bfloat16")
    file = options.output / "results.json"
    results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}

    def keep(name: str, row: Mapping[str, Any]) -> None:
        results[name] = row
        file.write_text(json.dumps(results, indent=2), encoding="utf-8")
        print(name, json.dumps(row), flush=True)

    first = int(FIRST * dissect(target.model).depth)
    upper = slice(first, len(own) - 1)
    if "map" not in results:
        keep(
            "map",
            {
                "explained": carried.explained,
                "cosine with own vectors": float(cosine(carried.ssv, own)[upper].mean()),
                "cosine with the sibling's": float(cosine(carried.ssv, sibling)[upper].mean()),
                "sibling's with own": float(cosine(sibling, own)[upper].mean()),
            },
        )
    if "bare" not in results:
        keep("bare", counts(target, {}, unseen, options.tokens))
    learned = learn(options, target, said["other"], {first: carried.ssv[first]}, keep)
    blocks = [range(first, first + 1), range(first, first + WIDE)]
    guides: dict[str, tuple[list[list[str]], list[dict[int, Tensor]]]] = {
        "sibling": (said["sibling"], [{at: sibling[at] for at in block} for block in blocks]),
        "other, answers": (said["other"], [learned]),
        "other, map": (said["other"], [{at: carried.ssv[at] for at in block} for block in blocks]),
        "own vectors": (said["sibling"], [{at: own[at] for at in block} for block in blocks]),
    }
    for guide, (rows, choices) in guides.items():
        for vectors in choices:
            name = f"{guide}, {len(vectors)} layers"
            if name not in results:
                strength, missed, bare = likeliest(target, vectors, rows[-SCORED:])
                additions = {at: strength * vector for at, vector in vectors.items()}
                told = counts(target, additions, unseen, options.tokens)
                keep(
                    name,
                    {
                        **told,
                        "layers": list(vectors),
                        "strength": strength,
                        "cross-entropy": missed,
                        "unsteered": bare,
                    },
                )


def prompts(options: argparse.Namespace) -> tuple[list[Sample], list[str], list[str]]:
    """Labelled ones for vectors and map, harmful ones for the guides to answer, and unseen harmful ones."""
    samples = samples_from_contrast(load_contrast_set())
    rng = random.Random(0)

    def short(found: Sequence[Sample]) -> list[Sample]:
        return [s for s in found if len(s.text) <= options.longest and not s.wrapped]

    known = short(samples.fitting)
    rng.shuffle(known)
    drawn = [
        sample
        for sort in ("harmful", "twin", "ordinary")
        for sample in [s for s in known if s.sort == sort][: options.fitted]
    ]
    asked = [s.text for s in known if s.harmful][: 2 * (options.learned + SCORED)]
    unseen = [s.text for s in short(samples.test) if s.harmful]
    return drawn, asked, rng.sample(unseen, min(options.rows, len(unseen)))


def activations(file: Path, spec: str, texts: Sequence[str]) -> Tensor:
    """`[prompts, layers, width]` at the last token, kept in a file."""
    if file.exists():
        kept = torch.load(file, weights_only=True)
        if kept["texts"] == list(texts):
            return torch.as_tensor(kept["values"])
    loaded = load_model(spec, dtype="bfloat16")
    values = record_activations(loaded.model, encode_chats(loaded.tokenizer, texts)).at(0)
    torch.save({"texts": list(texts), "values": values}, file)
    return values


def refusals(file: Path, spec: str, asked: Sequence[str], tokens: int) -> list[list[str]]:
    """Prompt and answer wherever the model declines, kept in a file; other answers are not."""
    if not file.exists():
        loaded = load_model(spec, dtype="bfloat16")
        stream = generate_answers(loaded.model, loaded.tokenizer, asked, max_new_tokens=tokens, batch_size=64)
        declined = [[asked[a.row], a.text] for a in stream if judge(a.text).outcome == "refusal"]
        file.write_text(json.dumps(declined), encoding="utf-8")
        print(f"{spec} declines {len(declined)} of {len(asked)}", flush=True)
    rows: list[list[str]] = json.loads(file.read_text(encoding="utf-8"))
    random.Random(0).shuffle(rows)
    return rows


def learn(
    options: argparse.Namespace,
    target: LoadedModel,
    said: Sequence[Sequence[str]],
    start: Vectors,
    keep: Callable[[str, Mapping[str, Any]], None],
) -> dict[int, Tensor]:
    """Vectors from the answers, without the answers that score the settings."""
    file = options.output / "learned.pt"
    if not file.exists():
        rows = said[:-SCORED][: options.learned]
        found = answer_vectors(
            target.model, target.tokenizer, [p for p, _ in rows], [a for _, a in rows], start=start
        )
        torch.save(dict(found.vectors), file)
        keep(
            "learning",
            {"refusals": len(rows), "bare": found.bare, "mapped": found.start, "learned": found.end}
            | {"steps": found.steps},
        )
    return dict(torch.load(file, weights_only=True))


def likeliest(
    target: LoadedModel, vectors: Vectors, rows: Sequence[Sequence[str]]
) -> tuple[float, float, float]:
    """The strength at which the answers are likeliest, their cross-entropy, and the bare target's."""
    forcing = TeacherForcing(target.model, target.tokenizer, [p for p, _ in rows], [a for _, a in rows])
    missed = {
        strength: forcing.cross_entropy({at: strength * vector for at, vector in vectors.items()})
        for strength in STRENGTHS
    }
    best = min(missed, key=lambda strength: missed[strength])
    return best, missed[best], forcing.cross_entropy({})


def counts(target: LoadedModel, additions: Vectors, unseen: Sequence[str], tokens: int) -> dict[str, Any]:
    width = dissect(target.model).width
    gate = GuidanceGate("none", (GateRead(min(additions, default=0)),), torch.zeros(1, width), 0.0)
    guard: Any = Guard(target.model, SteeringPlan(gate, additions), "always") if additions else nullcontext()
    with guard:
        stream = generate_answers(
            target.model, target.tokenizer, unseen, max_new_tokens=tokens, batch_size=64
        )
        outcomes = [judge(answer.text).outcome for answer in stream]
    told: dict[str, Any] = {name: outcomes.count(name) for name in OUTCOMES}
    interval = clopper_pearson(told["refusal"], len(unseen))
    return {**told, "prompts": len(unseen), "interval": [round(interval.low, 3), round(interval.high, 3)]}


if __name__ == "__main__":
    main()
