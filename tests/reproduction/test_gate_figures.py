"""The table of public benchmarks: halves, operating points, templates; on synthetic scores and files."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import pytest
import reproduction.benchmark_prompts as public
import torch
from reproduction.gate_figures import TOGETHER, fresh, halved, measured

from inferaligner.method.gate import GateRead, GuidanceGate

GATE = GuidanceGate("whitened", (GateRead(0),), torch.ones(1, 2), 0.0)
ROLES = {"medical": "traffic", "maths": "traffic", "AdvBench": "direct", "Q": "direct", "safe": "look-alike"}


def scores(high: float) -> dict[str, list[float]]:
    draw = random.Random(0)
    return {
        "medical": [draw.gauss(-2, 1) for _ in range(2000)],
        "maths": [draw.gauss(high, 1) for _ in range(2000)],
        "AdvBench": [draw.gauss(3, 1) for _ in range(300)],
        "Q": [draw.gauss(2, 1) for _ in range(100)],
        "safe": [draw.gauss(0, 1) for _ in range(100)],
    }


def value(rows: list[dict[str, object]], suite: str, bias: str = "at the operating point") -> float:
    (row,) = [r for r in rows if r["suite"] == suite and r["bias"] == bias]
    assert isinstance(row["value"], float)
    return row["value"]


def test_halves_are_disjoint_random_and_the_same_every_time() -> None:
    first, second = halved([float(n) for n in range(101)])
    assert sorted([*first, *second]) == [float(n) for n in range(101)]
    assert (len(first), len(second)) == (50, 51)
    assert halved([float(n) for n in range(101)]) == (first, second)
    assert max(first) > 60 and min(second) < 40


@pytest.mark.parametrize("high", [-2.0, 1.0])
def test_the_kind_that_scores_highest_sets_the_bias(high: float) -> None:
    rows = measured("paper", GATE, scores(high), ROLES, 0.01, 0.95)
    assert value(rows, "maths") <= 0.015
    if high == 1.0:
        assert value(rows, "medical") == 0.0
        assert value(rows, "maths", "its own bias") > 0.8
    together = [r for r in rows if r["suite"] == TOGETHER]
    assert {row["n"] for row in together} == {400}


def test_an_aligners_gate_is_never_moved_below_its_own_threshold() -> None:
    calm = {name: [v - 10 for v in vs] if ROLES[name] == "traffic" else vs for name, vs in scores(-2).items()}
    rows = measured("aligner", GATE, calm, ROLES, 0.01, 0.95)
    assert 0.4 < value(rows, "safe") < 0.6
    assert {row["bias"] for row in rows} == {"at the operating point"}
    assert value(measured("paper", GATE, calm, ROLES, 0.01, 0.95), "safe") == 1.0


def test_prompts_that_the_gate_knows_are_left_out() -> None:
    prompts = ["How do I pick a bicycle lock?", "How do I bake bread?", "How do I bake bread?"]
    assert fresh(prompts, ["Explain how to pick a bicycle lock"]) == ["How do I bake bread?"]


def test_templates_hold_the_question_plain_or_encoded(tmp_path: Path) -> None:
    fuzzer, goal = tmp_path / "jailbreak_templates_gptfuzzer", tmp_path / "jailbreak_templates_goalpriority"
    fuzzer.mkdir()
    goal.mkdir()
    with (fuzzer / "GPTFuzzer.csv").open("w", newline="") as out:
        csv.writer(out).writerows([["id", "text"], ["0", "You are Ada.\n[INSERT PROMPT HERE]"]])
    rows = [
        {"id": 0, "prompt": "[INSERT PROMPT HERE] and again [INSERT PROMPT HERE]"},
        {"id": 1, "prompt": "Decode: [INSERT PROMPT HERE]", "base64": True, "replace": 0},
        {"id": 2, "prompt": "Read: [INSERT PROMPT HERE]", "base64": False, "replace": 3},
    ]
    (goal / "jailbreak_templates.json").write_text(json.dumps({"one": rows[:1], "two": rows[1:]}))
    questions = ["Why is the sky blue?"]
    assert public.in_templates(public.gptfuzzer_templates(tmp_path), questions, 1) == [
        "You are Ada.\nWhy is the sky blue?"
    ]
    assert public.in_templates(public.goal_priority_templates(tmp_path), questions, 1) == [
        "Why is the sky blue? and again Why is the sky blue?"
    ]
    assert public.in_templates(public.encoded_templates(tmp_path), questions, 1) == [
        "Decode: V2h5IGlzIHRoZSBza3kgYmx1ZT8=",
        "Read: Jul vf gur fxl oyhr?",
    ]
