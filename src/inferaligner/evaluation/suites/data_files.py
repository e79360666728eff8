"""Rows of a data file: CSV, TSV, JSON lines, JSON (a list or an object of rows) or lines of text."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError
from inferaligner.prompts.prompt_files import cells_of_any_length


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Every row as a dictionary.

    A line of a text file becomes `{"text": line}`. In a JSON object of rows, the key of a row becomes
    `__id__`.

    Raises:
        InputError: the file cannot be read, or holds no rows.
    """
    try:
        # utf-8-sig: some publishers begin their files with a byte order mark.
        with file.open(encoding="utf-8-sig", newline="") as source:
            if file.suffix in (".csv", ".tsv"):
                delimiter = "\t" if file.suffix == ".tsv" else ","
                with cells_of_any_length():
                    return [dict(row) for row in csv.DictReader(source, delimiter=delimiter)]
            text = source.read()
        if file.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        elif file.suffix == ".json":
            rows = json.loads(text)
        else:
            return [{"text": line} for line in text.splitlines() if line.strip()]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{file} cannot be read ({error}): expected the file as published.") from None
    if isinstance(rows, dict):
        rows = [
            {**(row if isinstance(row, dict) else {"value": row}), "__id__": k} for k, row in rows.items()
        ]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file} holds no rows: expected a list of JSON objects.")
    return rows
