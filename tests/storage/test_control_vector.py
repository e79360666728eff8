from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import ArtifactError, InputError, MissingExtraError
from inferaligner.storage.control_vector import read_control_vector, write_control_vector
from tests.support.tiny_aligner import tiny_artifact
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def artifact() -> AlignerArtifact:
    return tiny_artifact(tiny_model(), tiny_tokenizer(), layers=(1, 3))


def write(file: Path, architecture: str = "controlvector", **tensors: np.ndarray) -> Path:
    """A GGUF file with these tensors; `direction_1` stands for `direction.1`."""
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    for name, tensor in tensors.items():
        writer.add_tensor(name.replace("_", "."), tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("norm", ["difference", "unit"])
def test_round_trip_with_the_strength_folded_in(artifact: AlignerArtifact, tmp_path: Path, norm: str) -> None:
    stronger = artifact.with_steering(strength=3.5, norm=norm)
    found = read_control_vector(write_control_vector(stronger, tmp_path / "v.gguf"))
    assert list(found) == [1, 3]
    for layer, vector in found.items():
        assert vector.dtype == torch.float32
        assert torch.equal(vector, 3.5 * stronger.directions()[layer])


def test_the_file_is_what_llama_cpp_loads(artifact: AlignerArtifact, tmp_path: Path) -> None:
    reader = gguf.GGUFReader(write_control_vector(artifact, tmp_path / "v.gguf"))
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 2
    assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.3"]
    for tensor in reader.tensors:
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert list(tensor.shape) == [32]


def test_adding_the_vectors_after_the_layers_of_their_number_is_steering_every_token(
    artifact: AlignerArtifact, tmp_path: Path
) -> None:
    """What llama.cpp does with direction.N, done by hand, against the guard held open at all positions."""
    from inferaligner.models.anatomy import dissect, residual, with_residual
    from inferaligner.steering.guard import Guard
    from inferaligner.steering.plan import SteeringPlan

    model = tiny_model()
    ids = torch.tensor([[5, 6, 7, 8]])
    vectors = read_control_vector(write_control_vector(artifact, tmp_path / "v.gguf"))
    plan = SteeringPlan(artifact.gate.with_bias(1e30), artifact.additions(), "all")
    with torch.no_grad():
        with Guard(model, plan):
            steered = model(input_ids=ids).logits
        handles = [
            dissect(model)
            .layers[layer]
            .register_forward_hook(
                lambda module, inputs, output, vector=vector: with_residual(output, residual(output) + vector)
            )
            for layer, vector in vectors.items()
        ]
        by_hand = model(input_ids=ids).logits
    for handle in handles:
        handle.remove()
    assert torch.allclose(steered, by_hand, atol=1e-6)


def test_layer_0_is_refused(artifact: AlignerArtifact, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer 0"):
        write_control_vector(artifact.with_steering(layers=(0, 1)), tmp_path / "v.gguf")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(
    artifact: AlignerArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "v.gguf"
    file.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(InputError, match="No space left"):
        write_control_vector(artifact, file)
    assert file.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["v.gguf"]


def test_a_file_of_repeng_is_read(tmp_path: Path) -> None:
    ones = np.ones(8, dtype=np.float32)
    found = read_control_vector(write(tmp_path / "v.gguf", direction_7=2 * ones, direction_2=ones))
    assert list(found) == [2, 7]
    assert torch.equal(found[7], torch.full((8,), 2.0))


@pytest.mark.parametrize(
    ("architecture", "tensors", "words"),
    [
        ("llama", {"direction_1": np.ones(8, np.float32)}, "holds llama"),
        ("controlvector", {"other": np.ones(8, np.float32)}, "no tensor direction.N"),
        ("controlvector", {"direction_0": np.ones(8, np.float32)}, "from 1 up"),
        ("controlvector", {"direction_1": np.ones(8, np.float16)}, "float32"),
        ("controlvector", {"direction_1": np.ones((2, 8), np.float32)}, "float32"),
        ("controlvector", {"direction_1": np.full(8, np.nan, np.float32)}, "NaN"),
        (
            "controlvector",
            {"direction_1": np.ones(8, np.float32), "direction_2": np.ones(4, np.float32)},
            "differ in width",
        ),
    ],
)
def test_files_that_are_no_control_vectors(
    tmp_path: Path, architecture: str, tensors: dict[str, np.ndarray], words: str
) -> None:
    with pytest.raises(ArtifactError, match=words):
        read_control_vector(write(tmp_path / "v.gguf", architecture, **tensors))


@pytest.mark.parametrize("keep", [0, 3, 20, 150, -8])
def test_truncated_files(artifact: AlignerArtifact, tmp_path: Path, keep: int) -> None:
    file = write_control_vector(artifact, tmp_path / "v.gguf")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="cannot be read as GGUF"):
        read_control_vector(file)


def test_no_file_and_no_package(
    artifact: AlignerArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="no file"):
        read_control_vector(tmp_path / "nothing.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"inferaligner\[models\]"):
        write_control_vector(artifact, tmp_path / "v.gguf")
