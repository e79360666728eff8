"""Completions in the form of HarmBench, for its evaluation script and classifiers.

completions/METHOD.json   {behaviour: [{"test_case", "generation"}]}
behaviors.csv             the behaviours, with the columns of HarmBench's files

HarmBench's behaviours keep their names. Its copyright behaviours are recognised by tags, which
`behaviors.csv`
lacks: use HarmBench's own file of behaviours for them.
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
    """The answers to harmful and jailbreak suites: by method and behaviour, a list with one test case."""
    by_method: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for record in _answered(records):
        case = {"test_case": record["prompt"], "generation": record["response"]}
        by_method.setdefault(record["method"], {})[_behaviour(record)] = [case]
    return by_method


def behaviours(records: Sequence[Record]) -> str:
    """The CSV of all behaviours in the records; a context is part of its behaviour, as in the prompt."""
    rows = {_behaviour(record): record for record in _answered(records)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for name, record in rows.items():
        writer.writerow([record["prompt"], "standard", record["domain"], "", "", name])
    return text.getvalue()


def write(records: Sequence[Record], folder: Path) -> list[Path]:
    """Writes the completions and the behaviours into the folder; returns the files of completions.

    Raises:
        InputError: the records have no answer to a harmful prompt, or the folder cannot be written to.
    """
    by_method = completions(records)
    if not by_method:
        raise InputError(
            "This run has no answers to harmful or jailbreak suites, and HarmBench judges no others."
        )
    written = []
    try:
        (folder / "completions").mkdir(parents=True, exist_ok=True)
        replace_file(folder / "behaviors.csv", behaviours(records).encode("utf-8", "replace"))
        for method, cases in by_method.items():
            file = folder / "completions" / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', method).strip('-')}.json"
            replace_file(file, (dump(cases, indent=1) + "\n").encode("utf-8", "replace"))
            written.append(file)
    except OSError as error:
        raise InputError(f"{folder} cannot be written to ({error.strerror}).") from None
    return written


def _answered(records: Sequence[Record]) -> Iterator[Record]:
    return (r for r in records if r["kind"] in HARMFUL_KINDS and "response" in r)


def _behaviour(record: Record) -> str:
    name = record.get("name") or f"{record['suite']}_{record['row']}"
    return re.sub(r"[^\w.-]+", "_", str(name)).strip("_")
