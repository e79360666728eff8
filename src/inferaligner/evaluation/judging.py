"""Judging stored answers again, and measuring a judge against people's labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError
from inferaligner.evaluation.judged import verdict_file
from inferaligner.evaluation.records_file import Record, key_of
from inferaligner.evaluation.suites.tables import rows_of
from inferaligner.fit.progress import Stages
from inferaligner.judges.pair_judge import Agreement, Label, PairJudge, agreement
from inferaligner.judges.rules import RuleJudge, judge
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump


def judge_records(
    folder: Path, records: Sequence[Record], judge: PairJudge, tell: Stages, *, told: str = ""
) -> int:
    """Asks for every verdict that is not there yet and writes each at once; equal answers are asked for once.

    Returns how many answers were asked about. `told` is the judge's agreement, for reports.
    """
    file = verdict_file(folder, judge.name)
    try:
        file.parent.mkdir(exist_ok=True)
        known, size = _known(file)
        with file.open("ab") as out:
            out.truncate(size)
            if size == 0 or told:
                _put(out, {"judge": judge.name, "agreement": told or judge.agreement})
            missing = [r for r in records if known.get(key_of(r)) != r["digest"]]
            # Methods share answers: one verdict serves all of them.
            asked = list(dict.fromkeys((r["prompt"], r["response"]) for r in missing))
            rows: dict[tuple[str, str], list[Record]] = {}
            for record in missing:
                rows.setdefault((record["prompt"], record["response"]), []).append(record)
            with tell.stage(f"judge: {judge.name}", len(asked)) as advance:
                for index, label in judge.judge_pairs(asked):
                    for record in rows[asked[index]]:
                        _put(out, _entry(record, label))
                    advance(1)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}).") from None
    return len(asked)


def judge_by_rules(folder: Path, records: Sequence[Record]) -> int:
    """Writes what the rules of today say of every answer that they judged when it was made; returns how many.

    `RunFolder` takes these verdicts in place of the records' own, likelihoods considered alike.
    """
    entries: list[dict[str, Any]] = [{"judge": RuleJudge.name, "agreement": RuleJudge.agreement}]
    for record in records:
        if "outcome" in record:
            verdict = judge(record["response"], mean_logprob=record.get("mean_logprob"))
            entries.append(_entry(record, Label(verdict.outcome, reason=verdict.reason)))
    file = verdict_file(folder, RuleJudge.name)
    try:
        file.parent.mkdir(exist_ok=True)
        replace_file(file, b"".join(map(_line, entries)))
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}).") from None
    return len(entries) - 1


def measure(
    file: Path, judge: PairJudge, tell: Stages, *, answer: str, label: str, positive: Sequence[str]
) -> tuple[Agreement, str]:
    """The judge against the labels in a file: rows with `prompt`, an answer and a label.

    Raises:
        InputError: columns are missing, or no row has a positive label.
    """
    rows = rows_of(file)
    for name in (answer, label):
        if not rows or name not in rows[0]:
            there = ", ".join(rows[0]) if rows else "nothing"
            raise InputError(f"{file} has no column {name!r}; it has {there}. Name the columns.")
    labels = [str(row[label]) in positive for row in rows]
    if not any(labels):
        found = sorted({str(row[label]) for row in rows})
        raise InputError(f"No row of {file} has a label {list(positive)}; there are {found[:8]}.")
    said = [""] * len(rows)
    pairs = [(str(row.get("prompt", "")), str(row[answer])) for row in rows]
    with tell.stage(f"agreement: {judge.name}", len(rows)) as advance:
        for index, verdict in judge.judge_pairs(pairs):
            said[index] = verdict.label
            advance(1)
    found_agreement = agreement(said, judge.positive, labels)
    return found_agreement, found_agreement.told(file.stem)


def _known(file: Path) -> tuple[dict[tuple[str, str, int], str], int]:
    """Verdicts that are there, by key with the digest of the answer; and the bytes of finished lines."""
    known: dict[tuple[str, str, int], str] = {}
    size = 0
    if file.exists():
        for line in file.read_bytes().splitlines(keepends=True):
            if not line.endswith(b"\n"):
                break
            size += len(line)
            entry = json.loads(line)
            if "row" in entry:
                known[key_of(entry)] = entry["digest"]
    return known, size


def _entry(record: Record, label: Label) -> dict[str, Any]:
    method, suite, row = key_of(record)
    place = {"method": method, "suite": suite, "row": row, "digest": record["digest"]}
    return {**place, "label": label.label, "score": label.score, "reason": label.reason}


def _line(entry: dict[str, Any]) -> bytes:
    return (dump(entry) + "\n").encode("utf-8", "backslashreplace")


def _put(out: Any, entry: dict[str, Any]) -> None:
    out.write(_line(entry))
    out.flush()
    os.fsync(out.fileno())
