"""Judges stored answers again, and measures a judge against human labels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError
from inferaligner.evaluation.judgements_file import finished_entries, judgements_file
from inferaligner.evaluation.records_file import Key, Record, key_of
from inferaligner.evaluation.suites.data_files import rows_of
from inferaligner.fit.progress import Progress
from inferaligner.judges import Judge, Judgement
from inferaligner.judges.agreement import Agreement, agreement
from inferaligner.judges.rules import RuleJudge
from inferaligner.judges.rules import judge as judge_answer
from inferaligner.storage.atomic_io import replace_file
from inferaligner.storage.json_io import dump


def judge_records(
    folder: Path, records: Sequence[Record], judge: Judge, progress: Progress, *, measured: str = ""
) -> int:
    """Judges every record without a stored judgement and stores each judgement at once.

    Equal answers to one prompt are judged once.

    Args:
        folder: the folder of the run.
        records: records of generated answers.
        judge: the judge, by whose name the file is called.
        progress: reports progress.
        measured: the judge's agreement with people, as `measure` returns it, for reports.

    Returns:
        The number of answers that were judged.

    Raises:
        InputError: the judge cannot be reached, or the file cannot be written.
    """
    file = judgements_file(folder, judge.name)
    try:
        file.parent.mkdir(exist_ok=True)
        stored, size = _stored(file)
        with file.open("ab") as out:
            out.truncate(size)
            if size == 0 or measured:
                _append(out, {"judge": judge.name, "agreement": measured or judge.agreement})
            rows: dict[tuple[str, str], list[Record]] = {}
            for record in records:
                if stored.get(key_of(record)) != record["digest"]:
                    rows.setdefault((record["prompt"], record["response"]), []).append(record)
            pairs = list(rows)
            with progress.stage(f"judge: {judge.name}", len(pairs)) as advance:
                for index, judgement in judge.judge_each(pairs):
                    for record in rows[pairs[index]]:
                        _append(out, _entry(record, judgement))
                    advance(1)
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}).") from None
    return len(pairs)


def judge_by_rules(folder: Path, records: Sequence[Record]) -> int:
    """Judges again, by the current rules, every answer that was judged by rules when it was generated.

    `RunFolder` prefers these judgements to the records' own. Both use the stored likelihoods.

    Returns:
        The number of answers that were judged.

    Raises:
        InputError: the file cannot be written.
    """
    entries: list[dict[str, Any]] = [{"judge": RuleJudge.name, "agreement": RuleJudge.agreement}]
    for record in records:
        if "outcome" in record:
            judgement = judge_answer(record["response"], mean_logprob=record.get("mean_logprob"))
            entries.append(_entry(record, judgement))
    file = judgements_file(folder, RuleJudge.name)
    try:
        file.parent.mkdir(exist_ok=True)
        replace_file(file, b"".join(map(_line, entries)))
    except OSError as error:
        raise InputError(f"{file} cannot be written ({error.strerror}).") from None
    return len(entries) - 1


def measure(
    file: Path, judge: Judge, progress: Progress, *, answer: str, label: str, positive: Sequence[str]
) -> tuple[Agreement, str]:
    """Measures the judge on answers with human labels.

    Args:
        file: rows with the columns `answer` and `label`, and with `prompt` where the judge reads prompts.
        judge: the judge.
        progress: reports progress.
        answer: the column of the answers.
        label: the column of the labels.
        positive: the labels in the file that correspond to the judge's positive labels.

    Returns:
        The agreement, and the same as one sentence.

    Raises:
        InputError: a column is missing, or no row has a positive label.
    """
    rows = rows_of(file)
    for name in (answer, label):
        if not rows or name not in rows[0]:
            columns = ", ".join(rows[0]) if rows else "no rows"
            raise InputError(f"{file} has no column {name!r}; it has {columns}. Name the columns.")
    people = [str(row[label]) in positive for row in rows]
    if not any(people):
        labels = sorted({str(row[label]) for row in rows})
        raise InputError(f"No row of {file} has a label {list(positive)}; its labels are {labels[:8]}.")
    judged = [""] * len(rows)
    pairs = [(str(row.get("prompt", "")), str(row[answer])) for row in rows]
    with progress.stage(f"agreement: {judge.name}", len(rows)) as advance:
        for index, judgement in judge.judge_each(pairs):
            judged[index] = judgement.label
            advance(1)
    measured = agreement(judged, judge.positive, people)
    return measured, measured.sentence(file.stem)


def _stored(file: Path) -> tuple[dict[Key, str], int]:
    """Digests of the answers with a judgement, by key; and the number of bytes of finished lines."""
    stored: dict[Key, str] = {}
    size = 0
    if file.exists():
        for entry, size in finished_entries(file):  # noqa: B007 (the last one is needed)
            if "row" in entry:
                stored[key_of(entry)] = entry["digest"]
    return stored, size


def _entry(record: Record, judgement: Judgement) -> dict[str, Any]:
    method, suite, row = key_of(record)
    place = {"method": method, "suite": suite, "row": row, "digest": record["digest"]}
    return {**place, "label": judgement.label, "score": judgement.score, "reason": judgement.reason}


def _line(entry: dict[str, Any]) -> bytes:
    return (dump(entry) + "\n").encode("utf-8", "backslashreplace")


def _append(out: Any, entry: dict[str, Any]) -> None:
    out.write(_line(entry))
    out.flush()
    os.fsync(out.fileno())
