"""The raw records of a run: JSON lines, appended batch by batch, continued after any interruption.

    records.jsonl   a line per (method, suite, row), in the order in which they were answered
    run.json        the run that wrote them: models, methods, prompts, settings

A row is finished when its line is complete; an incomplete last line, as a kill leaves it, is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump, plain

RECORDS, RUN = "records.jsonl", "run.json"
Record = dict[str, Any]
Key = tuple[str, str, int]


def key_of(record: Mapping[str, Any]) -> Key:
    """Method, suite and row of a record."""
    return str(record["method"]), str(record["suite"]), int(record["row"])


def read_records(folder: Path) -> list[Record]:
    """Every finished record of a run, in the order of the file.

    Raises:
        InputError: the folder has no records, or one is damaged.
    """
    file = folder / RECORDS
    if not file.is_file():
        raise InputError(f"{file} does not exist; expected the folder that `inferaligner evaluate` wrote.")
    return [record for record, _ in _finished(file)]


def stored_run(folder: Path) -> dict[str, Any]:
    """The content of `run.json` in the folder; empty if there is no readable one."""
    try:
        run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return run if isinstance(run, dict) else {}


class RecordsFile:
    """The records of one run, looked up by method and suite."""

    def __init__(self, folder: Path, run: Mapping[str, Any], *, overwrite: bool = False) -> None:
        """Reads the finished records of this run, or begins it.

        Args:
            folder: made if it does not exist.
            run: the content of `run.json`; records of a run with another content are refused.
            overwrite: drop the records in the folder.

        Raises:
            InputError: the folder holds another run (the message names the difference), or cannot be
                written to.
        """
        self.folder = folder
        self.run = plain(dict(run))
        self._file = folder / RECORDS
        self._by_suite: dict[tuple[str, str], dict[int, Record]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            size = 0
            if self._file.exists() and not overwrite:
                self._check_run()
                for record, end in _finished(self._file):
                    self._add(record)
                    size = end
            replace_file(folder / RUN, (dump(self.run, indent=2) + "\n").encode())
            with self._file.open("ab") as file:
                file.truncate(size)
        except OSError as error:
            raise InputError(f"{folder} cannot be written to ({error.strerror}); give another -o.") from None

    def of(self, method: str, suite: str) -> dict[int, Record]:
        """The finished records by row."""
        return self._by_suite.setdefault((method, suite), {})

    def append(self, records: Sequence[Record]) -> None:
        """Writes the records of rows that have none yet; they are on the disk when this returns."""
        fresh = [
            record for record in records if record["row"] not in self.of(record["method"], record["suite"])
        ]
        if not fresh:
            return
        with self._file.open("ab") as file:
            file.write("".join(dump(record) + "\n" for record in fresh).encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        for record in fresh:
            self._add(plain(record))

    def all(self) -> list[Record]:
        """Every record, by method and suite in the order of the run, and by row."""
        return [rows[row] for rows in self._by_suite.values() for row in sorted(rows)]

    def _add(self, record: Record) -> None:
        method, suite, row = key_of(record)
        self.of(method, suite)[row] = record

    def _check_run(self) -> None:
        earlier = stored_run(self.folder)
        if not earlier:
            raise InputError(
                f"{self._file} exists without a readable {RUN}, so the run that wrote it is unknown. Give "
                "another folder with -o, or start anew with --overwrite."
            )
        for name in {**self.run, **earlier}:
            if self.run.get(name) != earlier.get(name):
                raise InputError(
                    f"{self.folder} holds a run with other {name} ({_short(earlier.get(name))}, now "
                    f"{_short(self.run.get(name))}), so it cannot be continued. Give another folder with -o, "
                    "or start anew with --overwrite."
                )


def _finished(file: Path) -> Iterator[tuple[Record, int]]:
    """Yields each finished record with the byte at which its line ends."""
    end = 0
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            end += len(line)
            try:
                record = json.loads(line)
                key_of(record)
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    f"{file}, line {number} is not a record of an evaluation. Start anew with --overwrite."
                ) from None
            yield record, end


def _short(value: object) -> str:
    text = dump(value)
    return text if len(text) <= 120 else text[:117] + "..."
