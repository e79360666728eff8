from __future__ import annotations

from pathlib import Path

import torch

from inferaligner.aligner import Aligner
from inferaligner.storage.control_vector import read_control_vector
from tests.support.command_line import Run, refused
from tests.support.tiny_aligner import tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def test_a_control_vector_with_its_warning(run: Run, aligner: Path, tmp_path: Path) -> None:
    file = tmp_path / "vector.gguf"
    outcome = run("export", aligner, "--to", "gguf", "-o", file)
    assert (outcome.code, outcome.out) == (0, "")
    assert "Warning: The file has no gate" in outcome.err
    expected = Aligner.from_pretrained(aligner).artifact.additions()
    found = read_control_vector(file)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)


def test_layer_0_cannot_be_exported(run: Run, tmp_path: Path) -> None:
    folder = tiny_aligner(tiny_model(), tiny_tokenizer(), layers=(0, 1)).save_pretrained(tmp_path / "a")
    refused(run("export", folder, "-o", tmp_path / "vector.gguf"), "layer 0")
    assert not (tmp_path / "vector.gguf").exists()


def test_where_it_cannot_be_written(run: Run, aligner: Path, tmp_path: Path) -> None:
    refused(run("export", aligner, "-o", tmp_path), "is a folder")
    refused(run("export", aligner, "-o", tmp_path / "no" / "file.gguf"), "no folder")
