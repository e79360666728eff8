"""The runner: what is shared, what is generated, what is on the disk, and what a kill leaves of it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from inferaligner.aligner import Aligner
from inferaligner.errors import InputError, PromptTooLongError
from inferaligner.evaluation.batches import plan_batches
from inferaligner.evaluation.labels import last_number, named_choice, same_number
from inferaligner.evaluation.likelihood import (
    COMPLIANCE_OPENINGS,
    REFUSAL_OPENINGS,
    answer_logprobs,
    mean_logprobs,
    refusal_leaning,
)
from inferaligner.evaluation.methods.catalogue import make_methods
from inferaligner.evaluation.methods.method import MethodContext
from inferaligner.evaluation.records_file import RecordsFile, read_records
from inferaligner.evaluation.runner import Runner, RunSettings
from inferaligner.evaluation.suites.sampling import Subset
from inferaligner.fit.progress import NullProgress
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.prompts.chat import encode_chats
from tests.support.tiny_aligner import PROMPTS
from tests.support.tiny_bench import subset, tiny_bench

METHODS = ["inferaligner", "canned", "self-reminder"]
SUITES = [
    subset("asked"),
    subset("ordinary", "benign", copies=3),
    subset("quiz", "utility", "pick"),
    subset("named", "utility", "name", copies=1),
    subset("sums", "utility", "number", copies=1),
]


@pytest.fixture(scope="module")
def bench() -> MethodContext:
    torch.set_num_threads(1)
    return tiny_bench()


def go(
    bench: MethodContext, folder: Path, methods: Sequence[str] = METHODS, suites: Sequence[Subset] = SUITES
) -> Any:
    records = RecordsFile(folder, {"methods": list(methods)})
    made = make_methods(methods, bench)
    Runner(records, RunSettings(lambda suite: 5, batch_size=3), NullProgress()).run(made, suites)
    return {(r["method"], r["suite"], r["row"]): r for r in records.all()}


@pytest.fixture(scope="module")
def whole(bench: MethodContext, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("runner") / "whole"
    return folder, go(bench, folder)


def test_every_row_has_a_record(whole: tuple[Path, Any]) -> None:
    folder, records = whole
    assert len(records) == 4 * sum(len(s.items) for s in SUITES) == len(read_records(folder))


def test_every_generated_answer_says_whether_it_ended(whole: tuple[Path, Any]) -> None:
    records = [record for record in read_records(whole[0]) if record["task"] == "reply"]
    assert records
    for record in records:
        assert isinstance(record["ended"], bool) and isinstance(record["looped"], bool)
        assert not (record["ended"] and record["looped"])


def test_closed_rows_take_over_the_bare_answer_and_open_ones_do_not(whole: tuple[Path, Any]) -> None:
    _, records = whole
    ours = [r for (m, s, _), r in records.items() if (m, s) == ("inferaligner", "asked")]
    assert {r["open"] for r in ours} == {True, False}
    for record in ours:
        bare = records["none", "asked", record["row"]]
        assert record["shared"] is not record["open"]
        assert (record["digest"] == bare["digest"]) is record["shared"]
        assert record["mean_logprob"] < 0
        assert {"outcome", "leaning", "domain"} <= set(record)


def test_ordinary_prompts_are_answered_under_the_gate_itself(whole: tuple[Path, Any]) -> None:
    _, records = whole
    ours = [r for (m, s, _), r in records.items() if (m, s) == ("inferaligner", "ordinary")]
    assert not any(r["shared"] for r in ours)
    for record in ours:
        same = record["digest"] == records["none", "ordinary", record["row"]]["digest"]
        assert same is not record["open"]


def test_utility_is_the_bare_models_where_the_gate_is_closed(whole: tuple[Path, Any]) -> None:
    _, records = whole
    for suite in ("quiz", "named", "sums"):
        ours = [r for (m, s, _), r in records.items() if (m, s) == ("inferaligner", suite)]
        assert any(r["open"] for r in ours)
        for record in ours:
            bare = records["none", suite, record["row"]]
            if not record["open"]:
                assert (record["correct"], record["digest"]) == (bare["correct"], bare["digest"])
            elif suite == "quiz":
                assert record["logprobs"] != bare["logprobs"]
    canned = [r for (m, s, _), r in records.items() if (m, s) == ("canned", "quiz") and r["open"]]
    assert canned and all(r["picked"] is None and not r["correct"] for r in canned)


def test_an_interrupted_run_is_continued_to_the_same_records(
    whole: tuple[Path, Any], bench: MethodContext, tmp_path: Path
) -> None:
    folder, records = whole
    lines = (folder / "records.jsonl").read_bytes()
    for share in (0.05, 0.37, 0.8):
        torn = tmp_path / str(share)
        torn.mkdir()
        (torn / "run.json").write_bytes((folder / "run.json").read_bytes())
        (torn / "records.jsonl").write_bytes(lines[: int(share * len(lines))])
        assert go(bench, torn) == records
        kept = [json.loads(line) for line in (torn / "records.jsonl").read_text().splitlines()]
        assert len(kept) == len(records)


def test_another_run_is_not_continued(whole: tuple[Path, Any], bench: MethodContext) -> None:
    folder, _ = whole
    with pytest.raises(InputError, match="other methods"):
        RecordsFile(folder, {"methods": ["none"]})
    damaged = folder.parent / "damaged"
    damaged.mkdir()
    (damaged / "records.jsonl").write_text('{"row": 1}\n')
    with pytest.raises(InputError, match="run\\.json"):
        RecordsFile(damaged, {})
    with pytest.raises(InputError, match="line 1"):
        read_records(damaged)


def test_a_prompt_that_is_too_long_is_told_first(bench: MethodContext, tmp_path: Path) -> None:
    from inferaligner.evaluation.suites.suite import Item

    long = replace(subset("long"), items=(Item("word " * 3000),))
    with pytest.raises(PromptTooLongError):
        go(bench, tmp_path / "long", suites=[SUITES[0], long])
    assert read_records(tmp_path / "long") == []


def test_likelihoods_of_answers_alone_are_those_of_one_row_at_a_time(bench: MethodContext) -> None:
    model, answers = bench.target.model, [(5, 9, 2, 7), (3,), (8, 8, 4), (6, 1, 3, 2, 9, 4)]
    found = mean_logprobs(model, answers)
    assert found[1] is None
    for tokens, value in zip(answers, found, strict=True):
        if value is not None:
            with torch.no_grad():
                told = model(input_ids=torch.tensor([tokens])).logits[0].log_softmax(-1)
            alone = [float(told[at, token]) for at, token in enumerate(tokens[1:])]
            assert value == pytest.approx(sum(alone) / len(alone), abs=1e-4)


def test_an_aligner_that_watches_answers_decides_on_every_row_itself(tmp_path: Path) -> None:
    bench = tiny_bench()
    assert bench.aligner is not None
    width = bench.aligner.artifact.srv.shape[1]
    # Opens every row at its second token, whatever the gate said of the prompt.
    monitor = AnswerMonitor("test", 1, 1, torch.zeros(width), 1.0, 0.0)
    watching = replace(bench, aligner=Aligner(replace(bench.aligner.artifact, monitor=monitor)))
    records = go(watching, tmp_path / "watched", ["inferaligner"], [SUITES[0], SUITES[2]])
    ours = [r for (m, _, _), r in records.items() if m == "inferaligner"]
    assert ours and not any(record["shared"] for record in ours)
    late = [record for record in ours if "opened at token" in record]
    assert late and all(record["open"] for record in late)
    assert any(r["digest"] != records["none", r["suite"], r["row"]]["digest"] for r in late)


def test_log_likelihoods_are_those_of_one_row_at_a_time(bench: MethodContext) -> None:
    model, tokenizer = bench.target.model, bench.target.tokenizer
    prompts, answers = (
        ["Why?", "How do I bake a loaf of bread?"],
        [("yes", "no indeed"), ("a", "the sky", "the skies", "the sky is")],
    )
    found = answer_logprobs(model, tokenizer, prompts, answers)
    for prompt, row, values in zip(prompts, answers, found, strict=True):
        for answer, value in zip(row, values, strict=True):
            (context,) = encode_chats(tokenizer, [prompt])
            said = tokenizer(answer, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([[*context, *said]])).logits[0].log_softmax(-1)
            alone = sum(float(logits[len(context) - 1 + at, token]) for at, token in enumerate(said))
            assert value == pytest.approx(alone, abs=1e-4)


def test_a_refusals_odds_are_those_of_its_openings(bench: MethodContext) -> None:
    model, tokenizer = bench.target.model, bench.target.tokenizer
    openings = [*REFUSAL_OPENINGS, *COMPLIANCE_OPENINGS]
    rows = answer_logprobs(model, tokenizer, PROMPTS, [openings] * len(PROMPTS))
    split = len(REFUSAL_OPENINGS)
    odds = [sum(map(math.exp, row[:split])) / sum(map(math.exp, row[split:])) for row in rows]
    assert refusal_leaning(model, tokenizer, PROMPTS) == pytest.approx(list(map(math.log, odds)), abs=1e-4)


def test_batches_are_by_length_and_within_the_limit() -> None:
    batches = plan_batches([5, 1, 9, 2, 7000, 4000], [0, 1, 2, 3, 4, 5], 3)
    assert batches == [[1, 3, 0], [2], [5], [4]] or batches == [[1, 3, 0], [2, 5], [4]]
    assert sorted(row for batch in batches for row in batch) == list(range(6))


@pytest.mark.parametrize(
    ("answer", "choices", "named"),
    [
        ("B. Because of the knee.", "ABCD", "B"),
        ("The answer is C.", "ABCD", "C"),
        ("(D) is right", "ABCD", "D"),
        ("A good question, but no letter", "ABCD", None),
        ("Maybe not; I would say no.", ("yes", "no", "maybe"), "maybe"),
        ("It is neutral.", ("positive", "neutral"), "neutral"),
        ("Nothing of it", ("yes", "no"), None),
    ],
)
def test_named_choices(answer: str, choices: Sequence[str], named: str | None) -> None:
    assert named_choice(answer, tuple(choices)) == named


def test_numbers() -> None:
    assert last_number("First 3, then 1,204.50 dollars.") == "1204.50"
    assert last_number("#### 18\n") == "18"
    assert last_number("none") is None
    assert same_number("18.0", "18") and not same_number(None, "18") and not same_number("19", "18")
