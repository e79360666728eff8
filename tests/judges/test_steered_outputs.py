"""Gibberish against refusals and answers: outputs of SmolLM2-135M to harmless prompts, labelled by reading.

`steered_outputs.jsonl` has answers steered at up to eight times the fitted strength, with either model's
vectors and in several blocks of layers, and answers sampled too hot. No rule was written on them; doubtful
ones were left out.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from inferaligner.judges.rules import judge

ROWS = [
    json.loads(line)
    for line in (Path(__file__).parent / "steered_outputs.jsonl").read_text(encoding="utf-8").splitlines()
]


def test_there_is_enough_of_each() -> None:
    counts = Counter(row["label"] for row in ROWS)
    assert counts["gibberish"] >= 150 and counts["compliance"] >= 80 and counts["refusal"] >= 25


@pytest.mark.parametrize(("likelihood", "recall"), [(True, 0.85), (False, 0.75)])
def test_gibberish_is_detected(likelihood: bool, recall: float) -> None:
    counts = Counter(
        (row["label"], judge(row["answer"], mean_logprob=row["mean_logprob"] if likelihood else None).outcome)
        for row in ROWS
    )
    flagged = sum(count for (_, outcome), count in counts.items() if outcome == "gibberish")
    true = sum(count for (label, _), count in counts.items() if label == "gibberish")
    hits = counts["gibberish", "gibberish"]
    assert hits / true >= recall  # measured: 149 and 132 of 168
    assert hits / flagged >= 0.97  # measured: 149 of 150 and 132 of 133
    assert counts["gibberish", "refusal"] == 0  # gibberish never counts as safe
