"""Which tokens of the template's suffix a gate should read: one gate, fitted on each choice of tokens.

    python -m reproduction.gate_token_figures --data FOLDER -o out/gate-tokens

Every gate is fitted and cross-validated as `fit` does it, on the shipped contrast set, with its threshold at
the same share of the ordinary prompts; only the tokens differ. Each gate is then tested on public sets that
no gate was fitted on. Harmful prompts with a near-duplicate in the contrast set are left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

import reproduction.benchmark_prompts as public
from inferaligner.fit.gate.builder import WhitenedGate
from inferaligner.fit.gate.gate_choice import GateCrossValidation, build_gate, try_gate
from inferaligner.fit.options import SHIPPED_LIMIT
from inferaligner.fit.samples import samples_from_contrast
from inferaligner.method.activations import Activations, record_activations
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.models.loading import load_model
from inferaligner.prompts.chat import encode_chats, template_suffix
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.statistics.intervals import clopper_pearson
from reproduction.gate_figures import fresh

console = Console()

MOST = 900
"""Prompts per set."""

BENIGN = {name: public.BENIGN[name] for name in ("Alpaca", "XSTest safe")}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", default="builtin:smollm2-135m")
    parser.add_argument("--layers", type=int, nargs="+", default=[12, 14, 16])
    parser.add_argument("--shrinkage", type=float, default=0.5)
    parser.add_argument("--max-false-open", type=float, default=SHIPPED_LIMIT)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    target = load_model(options.target)
    last = len(template_suffix(target.tokenizer)) - 1
    contrast = load_contrast_set()
    known = [pair.harmful for pair in contrast.pairs]
    sets = {name: fresh(read(options.data), known)[:MOST] for name, read in public.HARMFUL.items()}
    sets |= {name: public.sample(read(options.data), MOST) for name, read in BENIGN.items()}
    samples = samples_from_contrast(contrast).fitting

    def record(prompts: Sequence[str]) -> Activations:
        ids = encode_chats(target.tokenizer, prompts)
        offsets = tuple(range(last + 1))
        return record_activations(
            target.model, ids, layers=options.layers, offsets=offsets, share_prefixes=True
        )

    console.print(f"recording {len(samples)} prompts of the contrast set")
    fitting = record([sample.text for sample in samples])
    gates: dict[str, GuidanceGate] = {}
    rows: list[dict[str, Any]] = []
    for name, offsets in choices(last).items():
        reads = [GateRead(layer, offset) for layer in options.layers for offset in offsets]
        trial = try_gate(
            WhitenedGate(options.shrinkage),
            GateCrossValidation(reads, fitting, samples),
            options.max_false_open,
        )
        gates[name] = build_gate(trial, fitting, samples)
        rows.append({"tokens": name, "offsets": offsets, "set": "contrast set", **trial.row()})
    for title, prompts in sets.items():
        console.print(f"{title}: {len(prompts)} prompts")
        seen = record(prompts)
        for name, gate in gates.items():
            scores = gate.scores(seen.values, seen.layers, seen.offsets)
            rate = clopper_pearson(int((scores > 0).sum()), len(scores))
            rows.append({"tokens": name, "set": title, **asdict(rate)})
        (options.output / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    show(rows, list(gates), list(sets))


def choices(last: int) -> dict[str, tuple[int, ...]]:
    """Choices of tokens as offsets before the last token.

    Args:
        last: The offset of the suffix's first token, the end of the turn.
    """
    offsets = {
        "the last alone": (0,),
        "and the end of the turn": (0, last),
        "and the one after it": (0, max(0, last - 1)),
        "and both": (0, max(0, last - 1), last),
        "all of the suffix": tuple(range(last + 1)),
    }
    # A short suffix makes some of these the same.
    return {name: tuple(sorted(set(chosen))) for name, chosen in offsets.items()}


def show(rows: Sequence[dict[str, Any]], tokens: Sequence[str], sets: Sequence[str]) -> None:
    table = Table(title="Share of prompts that open the gate, %", title_justify="left")
    table.add_column("tokens that are read")
    for name in sets:
        table.add_column(name, justify="right")
    for name in tokens:
        of_set = {row["set"]: row for row in rows if row["tokens"] == name and "value" in row}
        cells = [of_set[title] for title in sets]
        table.add_row(
            name, *(f"{100 * c['value']:.1f} [{100 * c['low']:.1f}, {100 * c['high']:.1f}]" for c in cells)
        )
    console.print(table)


if __name__ == "__main__":
    main()
