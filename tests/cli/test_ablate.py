"""`ablate` on tiny models: every axis, continued runs, the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from inferaligner.evaluation.ablation import safety
from tests.support.command_line import Run, refused
from tests.support.tiny_aligner import PROMPTS, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("ablate")
    model, tokenizer = tiny_model("llama", max_position_embeddings=2048), tiny_tokenizer()
    for name, seed in (("target", 0), ("sibling", 1)):
        tiny_model("llama", seed=seed, max_position_embeddings=2048).save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    tiny_aligner(model, tokenizer).save_pretrained(root / "aligner")
    (root / "asked.txt").write_text("\n".join(PROMPTS))
    (root / "calm.txt").write_text("\n".join(f"Please: {prompt}" for prompt in PROMPTS))
    return {name: root / name for name in ("target", "sibling", "aligner", "asked.txt", "calm.txt")}


def command(places: dict[str, Path], out: Path, *more: object) -> list[object]:
    fixed = ["ablate", places["target"], "--aligner", places["aligner"], "-o", out, "--max-new-tokens", 4]
    return [*fixed, "-s", f"harmful={places['asked.txt']}", *more, "--json"]


def test_strength_by_source_and_layers(run: Run, places: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked = command(places, out, "--factors", "0.5,2", "--layers", "1-2", "--layers", "2-3")
    done = run(*asked)
    assert done.code == 0, done.err
    rows = done.json()["results"]
    settings = {row["method"] for row in rows} - {"none"}
    assert len(settings) == 8  # two sources, two blocks, two strengths
    assert {r["metric"] for r in rows} >= {"refusal", "gibberish", "safety score", "log perplexity"}
    page = (out / "report.html").read_text()
    assert 'id="refusal-0-curve-3"' in page and 'id="log-perplexity-0-title"' in page
    written = (out / "records.jsonl").read_bytes()
    assert run(*asked).json()["results"] == rows
    assert (out / "records.jsonl").read_bytes() == written
    answers = [json.loads(line) for line in written.splitlines()]
    by = {(a["method"], a["row"]): a["digest"] for a in answers}
    ours, own = (f"{s}, layers 1-2, x 4, from_gate" for s in ("aligned", "target"))
    assert any(by[ours, row] != by[own, row] for row in range(len(PROMPTS)))
    refused(run(*command(places, out, "--factors", "3")), "other methods")


def test_positions_and_number_of_prompts(
    run: Run, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = run(*command(places, tmp_path / "p", "--axis", "positions")).json()["results"]
    assert {r["method"].rpartition(", ")[2] for r in rows} == {"none", "from_gate", "all"}
    monkeypatch.setattr("inferaligner.evaluation.ablation.PROMPT_COUNTS", (2, 4))
    more = ["--axis", "prompts", "--aligned", places["sibling"]]
    done = run(*command(places, tmp_path / "n", *more))
    assert done.code == 0, done.err
    told = {r["method"] for r in done.json()["results"]}
    assert sum("2 prompts" in name or "4 prompts" in name for name in told) == 2


def test_gates(run: Run, places: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inferaligner.evaluation.gate_ablation.FITTED_ON", 120)
    more = ["--axis", "gate", "-s", f"benign={places['calm.txt']}"]
    done = run(*command(places, tmp_path / "g", *more))
    assert done.code == 0, done.err
    rows = {(r["method"], r["metric"]) for r in done.json()["results"]}
    whitened = {name for name, _ in rows if name.startswith("whitened")}
    assert {(name, "gate AUROC") for name in ("fitted", "paper", "cast", *whitened)} <= rows and whitened
    page = (tmp_path / "g" / "report.html").read_text()
    assert 'id="gates-0-title"' in page and 'id="auroc-title"' in page


def test_the_safety_score() -> None:
    assert safety({"outcome": "refusal"}) == 1.0
    assert safety({"outcome": "gibberish", "leaning": 9.0}) == 0.0
    assert safety({"outcome": "compliance", "leaning": 0.0}) == pytest.approx(0.25)
    assert safety({"outcome": "compliance", "leaning": 1e9}) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--axis", "colour"], ["expected one of"]),
        (["--factors", "0,x"], ["positive numbers"]),
        (["--source", "nobody"], ["aligned or target"]),
        (["--layers", "7-9"], ["do not exist"]),
        (["--layers", "9-7"], ["--layers"]),
        (["-s", "arithmetic"], ["answered"]),
    ],
)
def test_bad_input(
    run: Run, places: dict[str, Path], tmp_path: Path, more: list[str], words: list[str]
) -> None:
    refused(run(*command(places, tmp_path / "bad", *more)), *words)
