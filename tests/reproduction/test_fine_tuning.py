"""Training: LoRA and all weights, in slices, on tiny models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from reproduction.fine_tuning import TIMES, Job, main, train
from reproduction.recipe import HERE
from reproduction.training_settings import Training

from inferaligner.errors import InputError
from inferaligner.models.loading import load_model
from inferaligner.prompts.chat import encode_chats
from tests.support.tiny_models import tiny_model, tiny_tokenizer

pytest.importorskip("trl", reason="TRL is not installed: make test-extras")
pytestmark = [pytest.mark.slow, pytest.mark.extras]

_PROMPT, _ANSWER = "Which flour?", "Rye."
_TRAINING = Training(
    rank=4, learning_rate=2e-2, epochs=6, batch_size=4, micro_batch=2, max_length=64, bf16=False,
    load_dtype="float32", save_steps=2, warmup=0,
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps({"prompt": _PROMPT, "answer": _ANSWER}) + "\n") * 8)
    return file


def _job(base: Path, rows: Path, output: Path, **changes: Any) -> Job:
    training = _TRAINING.model_copy(update=changes)
    return Job(model=str(base), rows=str(rows), output=str(output), training=training)


def _loss(spec: Path) -> float:
    """Mean negative log-likelihood of the answer."""
    loaded = load_model(spec, dtype="float32", device="cpu")
    asked = encode_chats(loaded.tokenizer, [_PROMPT])[0]
    said = loaded.tokenizer(_ANSWER, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = loaded.model(torch.tensor([asked + said])).logits[0, len(asked) - 1 : -1]
    return float(torch.nn.functional.cross_entropy(logits, torch.tensor(said)))


def test_an_adapter_learns_the_answer_and_loads_from_anywhere(
    base: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(base, rows, tmp_path / "out")
    assert train(job)
    monkeypatch.chdir(tmp_path)
    assert _loss(job.result) < _loss(base) - 0.4
    files = {file.name for file in job.result.iterdir()}
    assert "adapter_config.json" in files and not any(name.startswith("tokenizer") for name in files)
    times = json.loads((tmp_path / "out" / TIMES).read_text())
    assert (times["steps"], times["of"], times["rows"]) == (12, 12, 8)
    assert times["answer tokens"] < times["tokens"]


def test_out_of_time_it_stops_with_a_checkpoint_and_goes_on(base: Path, rows: Path, tmp_path: Path) -> None:
    job = _job(base, rows, tmp_path / "out")
    assert not train(job.model_copy(update={"minutes": 0.0}))
    assert not job.finished
    assert list((tmp_path / "out" / "checkpoints").glob("checkpoint-1"))
    assert train(job)
    times = json.loads((tmp_path / "out" / TIMES).read_text())
    assert [part["steps"] for part in times["slices"]] == [1, 11]
    before = (job.result / "adapter_model.safetensors").read_bytes()
    assert train(job), "a finished job is not done again"
    assert (job.result / "adapter_model.safetensors").read_bytes() == before


def test_all_weights_are_saved_with_the_tokenizer(base: Path, rows: Path, tmp_path: Path) -> None:
    job = _job(base, rows, tmp_path / "out", rank=None, epochs=3, gradient_checkpointing=True)
    assert train(job)
    assert (job.result / "config.json").is_file() and (job.result / "tokenizer.json").is_file()
    assert _loss(job.result) < _loss(base) - 0.4


def test_an_adapter_is_trained_further(base: Path, rows: Path, tmp_path: Path) -> None:
    first = _job(base, rows, tmp_path / "first", epochs=1)
    assert train(first)
    second = _job(base, rows, tmp_path / "second", epochs=2)
    assert train(second.model_copy(update={"adapter": str(first.result)}))
    assert _loss(second.result) < _loss(first.result) < _loss(base)


def test_no_row_fits(base: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No row of .* fits into 16 tokens"):
        train(_job(base, rows, tmp_path / "out", max_length=16))


def test_rows_that_are_too_long_are_told(
    base: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with rows.open("a") as file:
        file.write(json.dumps({"prompt": _PROMPT * 50, "answer": _ANSWER}) + "\n")
    assert train(_job(base, rows, tmp_path / "out", epochs=1))
    assert "1 of 9 rows are left out" in capsys.readouterr().err
    times = json.loads((tmp_path / "out" / TIMES).read_text())
    assert (times["rows"], times["rows too long"]) == (8, 1)


def test_the_command_tells_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = tmp_path / "job.json"
    job.write_text('{"model": "x"}')
    assert main([str(job)]) == 2
    assert "rows" in capsys.readouterr().err
    assert main([]) == 2


def test_several_processes_share_a_batch(base: Path, rows: Path, tmp_path: Path) -> None:
    job = _job(base, rows, tmp_path / "out", rank=None, epochs=1)
    file = tmp_path / "job.json"
    file.write_text(job.model_dump_json())
    # What `accelerate launch` starts on GPUs; its launcher for CPUs wants MPI.
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    ended = subprocess.run(
        [sys.executable, *words, "-m", "reproduction.fine_tuning", str(file)],
        capture_output=True, text=True, cwd=HERE.parent, timeout=200, check=False,
        env={**os.environ, "ACCELERATE_USE_CPU": "1"},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    times = json.loads((tmp_path / "out" / TIMES).read_text())
    assert times["slices"][0]["processes"] == 2
    assert times["of"] == 2, "eight rows in batches of four, over both processes"
    assert _loss(job.result) < _loss(base)
