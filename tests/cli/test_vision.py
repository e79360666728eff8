"""Images on the command line, with a tiny vision-language model on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inferaligner.aligner import Aligner
from tests.support.command_line import Run, refused
from tests.support.tiny_aligner import HARMFUL, HARMLESS, PROMPTS, tiny_aligner
from tests.support.tiny_vision import backbone_of, picture, save_vision, tiny_vision

SHORT = ("--max-new-tokens", 4)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny LLaVA, an aligner for it, an image, and rows with and without one."""
    root = tmp_path_factory.mktemp("vision")
    loaded = save_vision("llava", root / "target")
    tiny_aligner(loaded.model, loaded.reader).save_pretrained(root / "aligner")
    (root / "a.png").write_bytes(picture(1).data)
    (root / "b.png").write_bytes(picture(2).data)
    rows: list[dict[str, Any]] = [
        {"prompt": PROMPTS[0], "image": "a.png"},
        {"prompt": PROMPTS[0]},
        {"prompt": PROMPTS[1], "image": ["a.png", "b.png"]},
    ]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: root / name for name in ("target", "aligner", "a.png", "b.png", "rows.jsonl")}


def test_rows_with_images_are_scored(run: Run, places: dict[str, Path]) -> None:
    outcome = run("score", places["target"], "-a", places["aligner"], "-i", places["rows.jsonl"])
    assert outcome.code == 0, outcome.err
    rows = outcome.rows()
    assert [row["prompt"] for row in rows] == [PROMPTS[0], PROMPTS[0], PROMPTS[1]]
    assert [len(row.get("images", [])) for row in rows] == [1, 0, 2]
    assert rows[0]["images"] == [picture(1).digest]
    assert rows[0]["score"] != rows[1]["score"]  # the picture is seen


def test_answers_to_images_and_continued_runs(run: Run, places: dict[str, Path], tmp_path: Path) -> None:
    asked = [places["target"], "-a", places["aligner"], "-i", places["rows.jsonl"], *SHORT]
    direct = run("generate", *asked, "--compare")
    assert direct.code == 0, direct.err
    for row in direct.rows():
        assert row["open"] or row["response"] == row["unaligned_response"]
    kept = tmp_path / "answers.jsonl"
    assert run("generate", *asked, "--batch-size", 1, "-o", kept).code == 0
    whole = kept.read_text()
    kept.write_text("".join(whole.splitlines(keepends=True)[:1]))
    assert run("generate", *asked, "--batch-size", 1, "-o", kept).code == 0
    assert kept.read_text() == whole
    row = json.loads(whole.splitlines()[0])
    kept.write_text(json.dumps({**row, "images": ["0" * 64]}) + "\n")
    refused(run("generate", *asked, "-o", kept), "answers another prompt")


def test_an_image_beside_a_prompt(run: Run, places: dict[str, Path]) -> None:
    asked = ["generate", places["target"], "-a", places["aligner"], *SHORT]
    outcome = run(*asked, "-p", PROMPTS[0], "--image", places["a.png"])
    assert outcome.code == 0, outcome.err
    (row,) = outcome.rows()
    assert row["images"] == [picture(1).digest]
    scored = run("score", places["target"], "-a", places["aligner"], "-i", places["rows.jsonl"]).rows()[0]
    assert row["score"] == pytest.approx(scored["score"], abs=1e-4)
    refused(run(*asked, "-i", places["rows.jsonl"], "--image", places["a.png"]), "--image goes with --prompt")
    refused(run(*asked, "-p", "Hi", "--image", "nowhere.png"), "nowhere.png cannot be read")


def test_a_model_that_reads_text_alone_is_shown_nothing(
    run: Run, target: Path, aligner: Path, places: dict[str, Path]
) -> None:
    outcome = run("generate", target, "-a", aligner, "-p", "Hi", "--image", places["a.png"])
    refused(outcome, "no image processor")


def test_a_chat_with_images(run: Run, places: dict[str, Path]) -> None:
    asked = ["chat", places["target"], "-a", places["aligner"], *SHORT]
    lines = f"/image {places['a.png']}\n{PROMPTS[1]}\n{PROMPTS[3]}\n/compare\n/reset\n{PROMPTS[1]}\n"
    outcome = run(*asked, stdin=lines)
    assert outcome.code == 0, outcome.err
    assert "Shown with your next turn." in outcome.err and "Started over." in outcome.err
    assert "[without the aligner]" in outcome.out
    begun = run(*asked, "--image", places["a.png"], stdin=f"{PROMPTS[1]}\n{PROMPTS[3]}\n/compare\n")
    assert outcome.out.startswith(begun.out.rstrip("\n"))
    missing = run(*asked, stdin="/image nowhere.png\n")
    assert missing.code == 0 and "nowhere.png cannot be read" in missing.err


def test_a_text_model_tells_that_it_cannot_be_shown_an_image(
    run: Run, target: Path, aligner: Path, places: dict[str, Path]
) -> None:
    outcome = run("chat", target, "-a", aligner, stdin=f"/image {places['a.png']}\n/quit\n")
    assert "reads text alone" in outcome.err


def test_a_fit_with_a_text_only_guide_and_pictures(
    run: Run, places: dict[str, Path], prompt_file: Callable[..., Path], tmp_path: Path
) -> None:
    guide = backbone_of("llava", "LlamaForCausalLM")
    guide.save_pretrained(tmp_path / "guide")
    tiny_vision("llava").tokenizer.save_pretrained(tmp_path / "guide")
    labelled = ["--harmful", prompt_file(*HARMFUL, name="harmful.txt")]
    labelled += ["--harmless", prompt_file(*HARMLESS, name="harmless.txt")]
    digests = []
    for pictures in ("none", "some"):
        output = tmp_path / pictures
        outcome = run(
            "fit", places["target"], "--aligned", tmp_path / "guide", "-o", output, *labelled, "--paper",
            "--pictures", pictures, "--json",
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        prompts = Aligner.from_pretrained(output).artifact.provenance.prompts
        digests.append(prompts["digest"])
        assert ("in pictures" in prompts) == (pictures == "some")
        scored = run("score", places["target"], "-a", output, "-i", places["rows.jsonl"])
        assert scored.code == 0 and len(scored.rows()) == 3
    assert digests[0] != digests[1]


def test_suites_of_pictures_are_run(run: Run, places: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    outcome = run(
        "evaluate", places["target"], "-a", places["aligner"], "-s", "contrast-picture-attack@4",
        "-s", "contrast-picture-benign@3", "-m", "inferaligner", "-m", "self-reminder",
        "--max-new-tokens", 3, "--batch-size", 2, "-o", tmp_path / "out",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert len(records) == 3 * (4 + 3)
    assert all(len(record["images"]) == 1 for record in records)
    assert {r["domain"] for r in records} <= {"typographic", "written", "mixed"}
