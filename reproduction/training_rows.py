"""The rows that a domain model is trained on: drawn, decontaminated, mixed and written to files."""

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
from reproduction.decontamination import decontaminate

GENERAL = ("alpaca", "ultrachat")
"""Corpora of general dialogue: mixed in, but not traffic of the domain."""

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
    """Writes the training rows, benign prompts of the domain that training does not see, and the counts.

    Args:
        counts: The number of rows of each corpus.
        tests: The test prompts of each suite.
        folder: The folder to write to.
        data: The folder of public sets.
        benign: The number of prompts of the domain that are kept for the gate's operating point.
        seed: Seed of the draws.
        examples: Whether made-up rows replace the published ones, for a dry run.

    Returns:
        The counts, as in the record's file.

    Raises:
        InputError: A corpus is missing, or has fewer rows than `counts`.
    """
    trained: list[Row] = []
    aside: list[Row] = []
    corpora: dict[str, Any] = {}
    for name, count in counts.items():
        corpus = named(name)
        rows, separation = decontaminate(corpus.examples() if examples else corpus.rows(data), tests)
        draw = random.Random(f"{seed}/{name}")
        draw.shuffle(rows)
        taken = len(rows) if count == "all" else int(count)
        if taken > len(rows):
            raise InputError(
                f"{taken} rows of {name} are configured, and {len(rows)} of {separation.rows} are left "
                "without near-duplicates of test prompts. Set fewer rows."
            )
        share = 0 if name in GENERAL else -(-benign // _domains(counts))
        if count == "all" and len(rows) > 2 * share:
            taken -= share  # the rows kept for the gate must not be trained on
        trained += rows[:taken]
        if share:
            aside += rows[taken : taken + share]
        corpora[name] = {**separation.described(), "trained": taken, "title": corpus.title}
    random.Random(seed).shuffle(trained)
    _write(folder / TRAIN, trained)
    _write(folder / BENIGN, aside)
    record = {"corpora": corpora, "rows": len(trained), "benign": len(aside), "tests": _sizes(tests)}
    replace_file(folder / RECORD, (json.dumps(record, indent=1) + "\n").encode())
    return record


def read_rows(file: Path) -> list[Row]:
    """Reads the rows that `mix` has written."""
    found = [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
    return [Row(row["prompt"], row["answer"], row["prompt"]) for row in found]


def write_rows(file: Path, rows: Sequence[Row]) -> None:
    """Writes JSON lines with prompt and answer."""
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
