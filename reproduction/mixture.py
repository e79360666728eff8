"""The rows that a domain model is trained on: drawn, kept apart from every test prompt, mixed, written."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from inferaligner.errors import InputError
from inferaligner.storage.atomic_io import replace_file
from reproduction.corpora.catalogue import named
from reproduction.corpora.corpus import Row
from reproduction.separation import separate

GENERAL = ("alpaca", "ultrachat")
"""Corpora of general dialogue: mixed in, but no traffic of the domain."""

TRAIN, BENIGN, RECORD = "train.jsonl", "benign.jsonl", "separation.json"
Counts = Mapping[str, "int | Literal['all']"]


def mix(
    counts: Counts,
    tests: Mapping[str, Sequence[str]],
    folder: Path,
    *,
    data: Path | None,
    benign: int,
    seed: int,
    examples: bool = False,
) -> dict[str, Any]:
    """Writes training rows, the domain's own traffic that training does not see, and what was left out.

    Args:
        counts: rows of each corpus.
        tests: the prompts of every suite that will be asked.
        benign: how many prompts of the domain are put aside for the gate's operating point.
        examples: made-up rows in place of the published ones, for a dry run.

    Raises:
        InputError: a corpus is missing, or too small for what is asked of it.
    """
    trained: list[Row] = []
    aside: list[Row] = []
    told: dict[str, Any] = {}
    for name, count in counts.items():
        corpus = named(name)
        rows, separation = separate(corpus.examples() if examples else corpus.rows(data), tests)
        draw = random.Random(f"{seed}/{name}")
        draw.shuffle(rows)
        taken = len(rows) if count == "all" else int(count)
        if taken > len(rows):
            raise InputError(
                f"{taken} rows of {name} are asked for, and {len(rows)} are left of {separation.rows} once "
                "those near test prompts are out. Ask for fewer."
            )
        share = 0 if name in GENERAL else -(-benign // _domains(counts))
        if count == "all" and len(rows) > 2 * share:
            taken -= share  # what is put aside must not be trained on
        trained += rows[:taken]
        if share:
            aside += rows[taken : taken + share]
        told[name] = {**separation.described(), "trained": taken, "title": corpus.title}
    random.Random(seed).shuffle(trained)
    _write(folder / TRAIN, trained)
    _write(folder / BENIGN, aside)
    told = {"corpora": told, "rows": len(trained), "benign": len(aside), "tests": _sizes(tests)}
    replace_file(folder / RECORD, (json.dumps(told, indent=1) + "\n").encode())
    return told


def read_rows(file: Path) -> list[Row]:
    """What `mix` has written."""
    found = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    return [Row(row["prompt"], row["answer"], row["prompt"]) for row in found]


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """JSON lines with prompt and answer."""
    file.parent.mkdir(parents=True, exist_ok=True)
    _write(file, rows)


def _write(file: Path, rows: Sequence[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"prompt": row.prompt, "answer": row.answer}) + "\n" for row in rows]
    replace_file(file, "".join(lines).encode())


def _domains(counts: Counts) -> int:
    return max(1, sum(name not in GENERAL for name in counts))


def _sizes(tests: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return {name: len(prompts) for name, prompts in tests.items()}
