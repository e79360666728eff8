"""Completions in the form of HarmBench, for its own evaluation script and classifiers.

completions/METHOD.json   {behaviour: [{"test_case", "generation"}]}
behaviors.csv             the behaviours, with the columns of its own files

HarmBench's behaviours keep their names there. Its copyright behaviours need its own file of behaviours, whose
tags say so; this one has no tags.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError
from inferaligner.evaluation.metrics import HARMFUL_KINDS
from inferaligner.evaluation.records_file import Record
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump

COLUMNS = (
    "Behavior",
    "FunctionalCategory",
    "SemanticCategory",
    "Tags",
    "ContextString",
    "BehaviorID",
)


def completions(records: Sequence[Record]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By method: behaviour to test cases with their generations, of harmful and jailbreak suites."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in _answered(records):
        case = {"test_case": record["prompt"], "generation": record["response"]}
        found.setdefault(record["method"], {})[_behaviour(record)] = [case]
    return found


def behaviours(records: Sequence[Record]) -> str:
    """The CSV of all behaviours that were asked; a context stands in the behaviour, as it was asked."""
    rows = {_behaviour(record): record for record in _answered(records)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, record in rows.items():
        writer.writerow([record["prompt"], "standard", record["domain"], "", "", name])
    return text.getvalue()


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """Writes both, and returns the files of completions.

    Raises:
        InputError: there is nothing harmful to write, or the folder cannot be written to.
    """
    found = completions(records)
    if not found:
        raise InputError("This run has no answers to harmful or jailbreak suites, which HarmBench is about.")
    written = []
    try:
        (folder / "completions").mkdir(parents=True, exist_ok=True)
        replace_file(folder / "behaviors.csv", behaviours(records).encode("utf-8", "replace"))
        for method, cases in found.items():
            file = folder / "completions" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', method).strip('-')}.json"
            replace_file(file, (dump(cases, indent=1) + "\n").encode("utf-8", "replace"))
            written.append(file)
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}).") from None
    return written


def _answered(records: Sequence[Record]) -> Iterator[Record]:
    return (r for r in records if r["kind"] in HARMFUL_KINDS and "response" in r)


def _behaviour(record: Record) -> str:
    named = record.get("name") or f"{record['suite']}_{record['row']}"
    return re.sub(r"[^\w.-]+", "_", str(named)).strip("_")
