"""The folder of an evaluation.

run.json        models, methods, suites, settings        records.jsonl   raw records
timing.json     seconds per prompt, if measured          verdicts/       labels of other judges, a file each
results.json    every figure                             report.html     the report
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError
from inferaligner.evaluation.inference_time import Timing, timing_rows
from inferaligner.evaluation.judgements_file import StoredJudgements, judgement_rows, read_judgements
from inferaligner.evaluation.metrics import ResultRow, result_rows
from inferaligner.evaluation.records_file import RUN, Record, key_of, read_records
from inferaligner.judges.rules import RuleJudge
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump

TIMING, RESULTS, REPORT = "timing.json", "results.json", "report.html"


class RunFolder:
    """A finished or interrupted run, read from its folder."""

    def __init__(self, folder: Path) -> None:
        """Raises `InputError` if the folder holds no run."""
        self.folder = folder
        self.records: list[Record] = read_records(folder)
        if not self.records:
            raise InputError(
                f"{folder} holds a run without a record; finish it with `inferaligner evaluate`."
            )
        self.run: dict[str, Any] = _json(folder / RUN)
        judged = read_judgements(folder, self.records)
        self.judged: list[StoredJudgements] = [other for other in judged if other.judge != RuleJudge.name]
        for again in judged:
            if again.judge == RuleJudge.name:  # outcomes of a later version replace the records' own
                self.records = [_renewed(record, again) for record in self.records]

    def results(self) -> list[ResultRow]:
        """Every figure of the run, from the records, the labels of other judges, and the timings.

        `max_new_tokens` of a row is the length limit of the answers that it counts.
        """
        rows = result_rows(self.records)
        for judged in self.judged:
            rows += judgement_rows(judged, self.records)
        timings = self.timings()
        timed = [{**row, "max_new_tokens": timings[0].tokens} for row in timing_rows(timings)]
        return [*({**row, "max_new_tokens": self._length_limit(row["suite"])} for row in rows), *timed]

    def _length_limit(self, suite: str) -> int | None:
        """The length limit of a suite's answers; None for suites whose answers are picked, and for gates."""
        of_suite = self.run["suites"].get(suite)
        if of_suite is None or of_suite.get("task") == "pick":
            return None
        return int(of_suite.get("max new tokens", self.run["max new tokens"]))

    @property
    def lengths(self) -> str:
        """The length limits of the answers, as tables state them."""
        own = {name: s["max new tokens"] for name, s in self.run["suites"].items() if "max new tokens" in s}
        others = "".join(f", of {name} {tokens}" for name, tokens in own.items())
        return f"answers of at most {self.run['max new tokens']} tokens{others}"

    def timings(self) -> list[Timing]:
        """The measured times; empty if inference time was not measured."""
        file = self.folder / TIMING
        return [Timing(**entry) for entry in _json(file)] if file.is_file() else []

    def write_timings(self, timings: Sequence[Timing]) -> None:
        """Writes `timing.json`, so that a continued run does not measure again."""
        content = (dump([asdict(timing) for timing in timings], indent=1) + "\n").encode()
        _write(self.folder / TIMING, content)

    def write_results(self) -> list[ResultRow]:
        """Writes `results.json` and returns its rows."""
        rows = self.results()
        _write(self.folder / RESULTS, (dump(rows, indent=2) + "\n").encode())
        return rows

    def write_report(self, html: str) -> Path:
        """Writes `report.html` and returns its path."""
        _write(self.folder / REPORT, html.encode("utf-8", "replace"))
        return self.folder / REPORT


def _renewed(record: Record, judged: StoredJudgements) -> Record:
    verdict = judged.judgements.get(key_of(record))
    if verdict is None:
        return record
    return {**record, "outcome": verdict["label"], "reason": verdict["reason"]}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{file} cannot be read ({error}); expected a file that `inferaligner evaluate` wrote."
        ) from None


def _write(file: Path, content: bytes) -> None:
    try:
        replace_file(file, content)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}).") from None
