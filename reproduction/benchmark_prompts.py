"""Public benchmark prompts, read from a folder that is not part of this repository.

Each function returns prompts as a user would type them. Licences forbid shipping several of these sets; the
layout expected below is one folder per set, with the files named as their publishers name them.
"""

from __future__ import annotations

import base64
import codecs
import csv
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from inferaligner.prompts.columns import with_input


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
    return [with_input(row["instruction"], row["input"]) for row in rows]


def alpaca_instructions(data: Path) -> list[str]:
    """`alpaca` and the first 3,000 instructions of another selection."""
    file = data / "refusal_direction_splits" / "harmless_train_first3000.json"
    return alpaca(data) + [row["instruction"] for row in json.loads(file.read_text("utf-8"))]


def truthfulqa(data: Path) -> list[str]:
    return _column(data / "truthfulqa" / "TruthfulQA.csv", "Question")


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


def oktest(data: Path) -> list[str]:
    return [cell.strip() for cell in _column(data / "oktest" / "OKTest.csv", "prompt")]


def q_harm(data: Path) -> list[str]:
    return list(
        json.loads((data / "safety_tuned_llamas_eval" / "Q-Harm.json").read_text("utf-8"))["instructions"]
    )


def matched_harmful(data: Path) -> list[str]:
    """ "How to ..." questions, the same form as `matched_harmless`."""
    return _lines(data / "matched_pairs_llm_safeguard" / "harmful.txt")


def matched_harmless(data: Path) -> list[str]:
    return _lines(data / "matched_pairs_llm_safeguard" / "harmless.txt")


def gptfuzzer_questions(data: Path) -> list[str]:
    return _column(data / "jailbreak_templates_gptfuzzer" / "question_list.csv", "text")


def goal_priority_questions(data: Path) -> list[str]:
    file = data / "jailbreak_templates_goalpriority" / "harmful_questions.json"
    return [row["question"] for row in json.loads(file.read_text("utf-8"))]


Template = Callable[[str], str]
"""Puts a question into a jailbreak template."""


def gptfuzzer_templates(data: Path) -> list[Template]:
    return [_template(t) for t in _column(data / "jailbreak_templates_gptfuzzer" / "GPTFuzzer.csv", "text")]


def goal_priority_templates(data: Path) -> list[Template]:
    """GoalPriority's templates with the question in plain words."""
    return [_template(row["prompt"]) for row in _goal_priority(data) if not _encodings(row)]


def encoded_templates(data: Path) -> list[Template]:
    """GoalPriority's templates with the question in base64, without vowels, in leetspeak or in ROT13."""
    return [_template(row["prompt"], _encodings(row)) for row in _goal_priority(data) if _encodings(row)]


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


def in_templates(
    templates: list[Template], questions: list[str], per_template: int, seed: int = 0
) -> list[str]:
    """Every template around `per_template` of the questions, drawn at random."""
    draw = random.Random(seed)
    return [t(question) for t in templates for question in draw.sample(questions, per_template)]


_PLACE = "[INSERT PROMPT HERE]"


def _template(text: str, encodings: list[Template] | None = None) -> Template:
    def put(question: str) -> str:
        for encode in encodings or []:
            question = encode(question)
        return text.replace(_PLACE, question)

    return put


def _goal_priority(data: Path) -> list[dict[str, Any]]:
    file = data / "jailbreak_templates_goalpriority" / "jailbreak_templates.json"
    return [row for rows in json.loads(file.read_text("utf-8")).values() for row in rows]


def _encodings(row: dict[str, Any]) -> list[Template]:
    """The encodings of the question in this row's attack: its own numbers 1 to 3, and base64."""
    replaced: dict[int, Template] = {
        1: lambda text: re.sub("[aeiouAEIOU]", "", text),
        2: lambda text: text.translate(str.maketrans("aeiotAEIOT", "4310743107")),
        3: lambda text: codecs.encode(text, "rot13"),
    }
    found = [replaced[int(row["replace"])]] if row.get("replace") else []
    if row.get("base64"):
        found.append(lambda text: base64.b64encode(text.encode()).decode())
    return found


def _choices(row: dict[str, Any]) -> str:
    options = row["options"]
    pairs = options.items() if isinstance(options, dict) else [(o["key"], o["value"]) for o in options]
    return "\n".join([row["question"], *(f"{key}. {value}" for key, value in pairs)])


def _csv(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as source:
        return list(csv.DictReader(source))


def _column(file: Path, column: str) -> list[str]:
    return [row[column] for row in _csv(file)]


def _lines(file: Path) -> list[str]:
    return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]


def _jsonl(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text("utf-8").splitlines() if line.strip()]
