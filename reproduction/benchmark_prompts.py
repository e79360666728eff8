"""Public benchmark prompts, read from a folder that is not part of this repository.

Each function returns prompts as a user would type them. Licences forbid shipping several of these sets; the
layout expected below is one folder per set, with the files named as their publishers name them.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any


def advbench(data: Path) -> list[str]:
    return _column(data / "advbench" / "advbench.csv", "goal")


def harmbench(data: Path) -> list[str]:
    """The text test set; a contextual behaviour comes with its context in front."""
    rows = _csv(data / "harmbench" / "harmbench_behaviors_text_test.csv")
    return [
        f"{row['ContextString']}\n\n---\n\n{row['Behavior']}" if row["ContextString"] else row["Behavior"]
        for row in rows
    ]


def strongreject(data: Path) -> list[str]:
    return _column(data / "strongreject" / "strongreject_dataset.csv", "forbidden_prompt")


def malicious_instruct(data: Path) -> list[str]:
    text = (data / "malicious_instruct_tdc2023" / "MaliciousInstruct.txt").read_text("utf-8")
    return [line.strip() for line in text.splitlines() if line.strip()]


def alpaca(data: Path) -> list[str]:
    rows = json.loads((data / "alpaca_en_demo" / "alpaca_en_demo.json").read_text("utf-8"))
    return [row["instruction"] + (f"\n{row['input']}" if row["input"] else "") for row in rows]


def gsm8k(data: Path) -> list[str]:
    return [row["question"] for row in _jsonl(data / "gsm8k" / "test.jsonl")]


def financial_phrasebank(data: Path) -> list[str]:
    rows = _jsonl(data / "pixiu_finance" / "fpb_valid_sample2500.jsonl")
    return [row["conversations"][0]["value"] for row in rows]


def medqa(data: Path) -> list[str]:
    return [_choices(row) for row in _jsonl(data / "medqa_test" / "medqa_us_4options_test.jsonl")]


def xstest_safe(data: Path) -> list[str]:
    return [row["prompt"] for row in _csv(data / "xstest" / "xstest_prompts.csv") if row["label"] == "safe"]


def xstest_unsafe(data: Path) -> list[str]:
    return [row["prompt"] for row in _csv(data / "xstest" / "xstest_prompts.csv") if row["label"] != "safe"]


HARMFUL: dict[str, Callable[[Path], list[str]]] = {
    "AdvBench": advbench,
    "HarmBench": harmbench,
    "StrongREJECT": strongreject,
    "MaliciousInstruct": malicious_instruct,
    "XSTest unsafe": xstest_unsafe,
}
BENIGN: dict[str, Callable[[Path], list[str]]] = {
    "Alpaca": alpaca,
    "GSM8K": gsm8k,
    "FPB": financial_phrasebank,
    "MedQA": medqa,
    "XSTest safe": xstest_safe,
}


def sample(prompts: list[str], count: int, seed: int = 0) -> list[str]:
    """A seeded sample of the distinct prompts."""
    distinct = list(dict.fromkeys(prompts))
    return random.Random(seed).sample(distinct, min(count, len(distinct)))


def _choices(row: dict[str, Any]) -> str:
    options = row["options"]
    pairs = options.items() if isinstance(options, dict) else [(o["key"], o["value"]) for o in options]
    return "\n".join([row["question"], *(f"{key}. {value}" for key, value in pairs)])


def _csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as source:
        return list(csv.DictReader(source))


def _column(file: Path, column: str) -> list[str]:
    return [row[column] for row in _csv(file)]


def _jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
