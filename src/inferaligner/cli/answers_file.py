"""A file of answers that an interrupted run can continue.

    FILE            one JSON line per prompt, in the order of the prompts, appended as answers are finished
    FILE.run.json   the run that wrote it: aligner, target, settings; a run without it cannot be continued

Only complete lines count as finished; the incomplete last line of an interrupted run is dropped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from inferaligner.cli.output_file import check_output_file, write_whole
from inferaligner.errors import InputError
from inferaligner.prompts.images import Prompt, prompt_fields
from inferaligner.storage.json_io import dump, plain

_ANEW = "Give another file with -o, or start again with --overwrite."


class AnswersFile:
    """The answers to `prompts`, of which the first `finished` exist already."""

    def __init__(
        self, file: Path, run: Mapping[str, Any], prompts: Sequence[Prompt], *, overwrite: bool
    ) -> None:
        """Opens the answers of an earlier run, if the file exists and `overwrite` is off.

        Args:
            file: The file of answers.
            run: The settings of this run, which must be those of the earlier one.
            prompts: All prompts of this run.
            overwrite: Whether to ignore existing answers.

        Raises:
            InputError: The file belongs to another run, or is not a file of answers.
        """
        self.file = file
        self._record = file.with_name(f"{file.name}.run.json")
        self._run = plain(dict(run))
        self._size = 0  # bytes of finished rows
        self.rows: list[dict[str, Any]] = []
        if not overwrite and file.exists() and file.stat().st_size > 0:
            self._continue(prompts)

    @property
    def finished(self) -> int:
        """The number of finished rows."""
        return len(self.rows)

    def open(self) -> None:
        """Prepares the file for `append`: writes the record of the run and drops an incomplete last line."""
        write_whole(self._record, (dump(self._run, indent=2) + "\n").encode())
        check_output_file(self.file)
        with self.file.open("ab") as file:
            file.truncate(self._size)

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Adds finished rows and writes them to the disk."""
        with self.file.open("ab") as file:
            file.write("".join(dump(row) + "\n" for row in rows).encode("utf-8", "backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        self.rows.extend(rows)

    def _continue(self, prompts: Sequence[Prompt]) -> None:
        self._check_run()
        finished, _, torn = self.file.read_bytes().rpartition(b"\n")
        lines = finished.split(b"\n") if finished else []
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
                prompt = {"prompt": row["prompt"], **{k: row[k] for k in ("images",) if k in row}}
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    f"{self.file}, line {number} is not an answer of a `generate` run. {_ANEW}"
                ) from None
            if number > len(prompts) or prompt != prompt_fields(prompts[number - 1]):
                raise InputError(
                    f"{self.file}, line {number} answers another prompt than the input has there, so that "
                    f"run cannot be continued. {_ANEW}"
                )
            self.rows.append(row)
        self._size = self.file.stat().st_size - len(torn)

    def _check_run(self) -> None:
        try:
            earlier = json.loads(self._record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise InputError(
                f"{self.file} exists, but {self._record.name}, which describes its run, is missing or "
                f"unreadable. {_ANEW}"
            ) from None
        earlier = earlier if isinstance(earlier, dict) else {}
        differing = [name for name in self._run if self._run[name] != earlier.get(name)]
        if differing:
            name = differing[0]
            raise InputError(
                f"{self.file} was written with another {name} ({earlier.get(name)}, now {self._run[name]}), "
                f"so that run cannot be continued. {_ANEW}"
            )
