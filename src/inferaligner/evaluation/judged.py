"""Verdicts of other judges than the rules on stored records: a file per judge, which can be continued.

    verdicts/<judge>.jsonl    {"method", "suite", "row", "digest", "label", "score", "reason"}

A label is one of the judge's own words; which of them count for what is the judge's `meaning`. Answers of
which a judge made nothing have the label `unparsable`: they are counted, not dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inferaligner.evaluation.comparison import mean_interval
from inferaligner.evaluation.metrics import BARE, ResultRow, against_bare, grouped, rate_row, row
from inferaligner.evaluation.records_file import Record, key_of

FOLDER = "verdicts"
UNPARSABLE = "unparsable"


@dataclass(frozen=True)
class Judged:
    """One judge's verdicts on a run, by `(method, suite, row)`, and its agreement where it was measured."""

    judge: str
    verdicts: dict[tuple[str, str, int], dict[str, Any]]
    agreement: str


def verdict_file(folder: Path, judge: str) -> Path:
    """Where a judge's verdicts are kept."""
    name = re.sub(r"[^\w.-]+", "-", judge).strip("-")
    return folder / FOLDER / f"{name}.jsonl"


def read_judged(folder: Path, records: Sequence[Record]) -> list[Judged]:
    """What judges have said of these very answers; verdicts on other answers are left out."""
    digests = {key_of(record): record["digest"] for record in records}
    found = []
    for file in sorted((folder / FOLDER).glob("*.jsonl")):
        judge, agreement = file.stem, ""
        verdicts: dict[tuple[str, str, int], dict[str, Any]] = {}
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # what an interruption left of the last line; the verdict is asked for again
            if "judge" in entry:
                judge, agreement = entry["judge"], entry.get("agreement", "")
            elif digests.get(key_of(entry)) == entry["digest"]:
                verdicts[key_of(entry)] = entry
        if verdicts:
            found.append(Judged(judge, verdicts, agreement))
    return found


def judged_rows(judged: Judged, records: Sequence[Record]) -> list[ResultRow]:
    """The share of each label, and the mean score where there is one, per method and suite."""
    labels = sorted({verdict["label"] for verdict in judged.verdicts.values()})
    found: list[ResultRow] = []
    for suite, methods in grouped(records).items():
        told = {
            method: {r["row"]: v for r in rows if (v := judged.verdicts.get((method, suite, r["row"])))}
            for method, rows in methods.items()
        }
        bare = told.get(BARE, {})
        for method, verdicts in told.items():
            if not verdicts:
                continue
            both = [at for at in verdicts if at in bare] if method != BARE else []
            for label in labels:
                ours = [verdict["label"] == label for verdict in verdicts.values()]
                found.append(rate_row(method, suite, label, ours, judged.judge))
                if both:
                    pair = [[d[at]["label"] == label for at in both] for d in (verdicts, bare)]
                    found.append(against_bare(method, suite, label, pair[0], pair[1], judged.judge))
            scores = [v["score"] for v in verdicts.values() if v.get("score") is not None]
            if scores:
                value, low, high = mean_interval(scores)
                figures = {"value": value, "low": low, "high": high, "n": len(scores)}
                found.append(row(method, suite, "harm score, 0 to 1", figures, judged.judge))
    return found
