"""The judgements of other judges than the rules on stored records, a file per judge:

    verdicts/<judge>.jsonl    {"method", "suite", "row", "digest", "label", "score", "reason"}

The first line names the judge and its agreement with people. Answers that a judge could not label have the
label `unparsable`: they are counted, not dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferaligner.evaluation.metrics import BARE, ResultRow, against_bare, grouped, rate_row, row
from inferaligner.evaluation.paired_statistics import mean_interval
from inferaligner.evaluation.records_file import Key, Record, key_of

FOLDER = "verdicts"


@dataclass(frozen=True)
class StoredJudgements:
    """One judge's judgements on a run, by the keys of the records, and its agreement with people."""

    judge: str
    judgements: dict[Key, dict[str, Any]]
    agreement: str


def judgements_file(folder: Path, judge: str) -> Path:
    """The file of a judge's judgements."""
    name = re.sub(r"[^\w.-]+", "-", judge).strip("-")
    return folder / FOLDER / f"{name}.jsonl"


def finished_entries(file: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each entry with the byte at which its line ends; a line that an interruption cut off is left out."""
    end = 0
    for line in file.read_bytes().splitlines(keepends=True):
        if not line.endswith(b"\n"):
            return
        end += len(line)
        try:
            yield json.loads(line), end
        except ValueError:
            continue  # a damaged line: its answer is judged again


def read_judgements(folder: Path, records: Sequence[Record]) -> list[StoredJudgements]:
    """All judgements on the records; those on earlier answers of the same rows are left out."""
    digests = {key_of(record): record["digest"] for record in records}
    stored = []
    for file in sorted((folder / FOLDER).glob("*.jsonl")):
        judge, agreement = file.stem, ""
        judgements: dict[Key, dict[str, Any]] = {}
        for entry, _ in finished_entries(file):
            if "judge" in entry:
                judge, agreement = entry["judge"], entry.get("agreement", "")
            elif digests.get(key_of(entry)) == entry["digest"]:
                judgements[key_of(entry)] = entry
        if judgements:
            stored.append(StoredJudgements(judge, judgements, agreement))
    return stored


def judgement_rows(stored: StoredJudgements, records: Sequence[Record]) -> list[ResultRow]:
    """Per method and suite: the share of each label, and the mean score of a judge that grades."""
    labels = sorted({entry["label"] for entry in stored.judgements.values()})
    rows: list[ResultRow] = []
    for suite, methods in grouped(records).items():
        judged = {
            method: {r["row"]: e for r in own if (e := stored.judgements.get((method, suite, r["row"])))}
            for method, own in methods.items()
        }
        bare = judged.get(BARE, {})
        for method, entries in judged.items():
            if not entries:
                continue
            both = [at for at in entries if at in bare] if method != BARE else []
            for label in labels:
                has_label = [entry["label"] == label for entry in entries.values()]
                rows.append(rate_row(method, suite, label, has_label, stored.judge))
                if both:
                    ours, theirs = ([side[at]["label"] == label for at in both] for side in (entries, bare))
                    rows.append(against_bare(method, suite, label, ours, theirs, stored.judge))
            scores = [entry["score"] for entry in entries.values() if entry.get("score") is not None]
            if scores:
                value, low, high = mean_interval(scores)
                figures = {"value": value, "low": low, "high": high, "n": len(scores)}
                rows.append(row(method, suite, "harm score, 0 to 1", figures, stored.judge))
    return rows
