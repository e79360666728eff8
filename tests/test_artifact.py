from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors

from inferaligner import artifact as artifact_module
from inferaligner.artifact import (
    AlignerArtifact,
    ModelRecord,
    Provenance,
    check_output_folder,
)
from inferaligner.errors import ArtifactError, InputError
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.method.steering_settings import SteeringSettings
from inferaligner.models.fingerprint import ModelFingerprint, TokenizerFingerprint
from inferaligner.storage.artifact_settings import checksum
from tests.support.tiny_aligner import tiny_artifact
from tests.support.tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def artifact() -> AlignerArtifact:
    return tiny_artifact(tiny_model(), tiny_tokenizer())


@pytest.fixture
def folder(artifact: AlignerArtifact, tmp_path: Path) -> Path:
    return artifact.write(tmp_path / "aligner", "# card")


def same(one: AlignerArtifact, other: AlignerArtifact) -> bool:
    return (
        torch.equal(one.srv, other.srv)
        and torch.equal(one.ssv, other.ssv)
        and torch.equal(one.directions(), other.directions())
        and (one.learned is None) == (other.learned is None)
        and torch.equal(one.gate.weights, other.gate.weights)
        and replace(one.gate, weights=other.gate.weights) == other.gate
        and same_ends(one.end_gate, other.end_gate)
        and (one.steering, one.provenance) == (other.steering, other.provenance)
    )


def same_ends(one: EndGate | None, other: EndGate | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one.gate.weights, other.gate.weights) and (
        replace(one, gate=replace(one.gate, weights=other.gate.weights)) == other
    )


# -- round trips -------------------------------------------------------------------------------------------

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
TEXT = st.text(max_size=20)
COUNTS = st.integers(0, 2**40)
FIGURES = st.recursive(
    st.none() | st.booleans() | COUNTS | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@st.composite
def artifacts(draw: st.DrawFn) -> AlignerArtifact:
    depth, width = draw(st.integers(1, 4)), draw(st.integers(1, 5))

    def tensor(*shape: int) -> torch.Tensor:
        count = int(torch.tensor(shape).prod())
        return torch.tensor(draw(st.lists(FINITE, min_size=count, max_size=count))).reshape(shape)

    def end_gate(weights: torch.Tensor) -> EndGate:
        gate = GuidanceGate(draw(TEXT), (GateRead(min(read.layer for read in reads)),), weights, 0.0)
        return EndGate(gate, draw(FINITE), draw(FINITE))

    layers = st.integers(0, depth - 1)
    reads = draw(
        st.lists(st.builds(GateRead, layers, st.integers(0, 9)), min_size=1, max_size=3, unique=True)
    )
    model = ModelFingerprint(
        architecture=draw(TEXT),
        model_type=draw(TEXT),
        width=width,
        depth=depth,
        vocab_size=draw(COUNTS),
        heads=draw(COUNTS),
        shapes_sha256=draw(TEXT),
    )
    tokenizer = TokenizerFingerprint(
        vocabulary_sha256=draw(TEXT),
        chat_template_sha256=draw(st.none() | TEXT),
        special_tokens=draw(st.dictionaries(TEXT, COUNTS, max_size=2)),
    )
    record = ModelRecord(spec=draw(TEXT), model=model, tokenizer=tokenizer, weights=draw(st.none() | TEXT))
    return AlignerArtifact(
        gate=GuidanceGate(draw(TEXT), tuple(reads), tensor(len(reads), width), draw(FINITE)),
        steering=SteeringSettings(
            layers=tuple(draw(st.lists(layers, min_size=1, max_size=3, unique=True))),
            strength=draw(st.floats(allow_nan=False, allow_infinity=False)),
            norm=draw(st.sampled_from(["difference", "unit"])),
            positions=draw(st.sampled_from(["from_gate", "all"])),
        ),
        srv=tensor(depth, width),
        ssv=tensor(depth, width),
        provenance=Provenance(
            target=record,
            aligned=record,
            prompts=draw(st.dictionaries(TEXT, FIGURES, max_size=2)),
            versions=draw(st.dictionaries(TEXT, TEXT, max_size=2)),
            created=draw(TEXT),
            system_prompt=draw(st.none() | TEXT),
        ),
        calibration=draw(st.dictionaries(TEXT, FIGURES, max_size=3)),
        learned=tensor(depth, width) if draw(st.booleans()) else None,
        end_gate=end_gate(tensor(1, width)) if draw(st.booleans()) else None,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(artifacts(), TEXT)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, found: AlignerArtifact, card: str
) -> None:
    folder = tmp_path_factory.mktemp("round") / "aligner"
    read = AlignerArtifact.read(found.write(folder, card))
    assert same(read, found)
    assert read.calibration == found.calibration
    assert read.digest() == found.digest()
    assert (folder / "README.md").read_bytes() == card.encode()


def test_figures_that_json_lacks_are_kept_as_null(artifact: AlignerArtifact, tmp_path: Path) -> None:
    odd = replace(artifact, calibration={"a": float("nan"), "b": (1, float("inf")), 10: "ten", 9: "nine"})  # type: ignore[dict-item]
    read = AlignerArtifact.read(odd.write(tmp_path / "odd", ""))
    assert read.calibration == {"a": None, "b": [1, None], "10": "ten", "9": "nine"}
    assert read.digest() == odd.digest()


def test_half_a_surrogate_pair_in_a_path_is_kept(artifact: AlignerArtifact, tmp_path: Path) -> None:
    record = artifact.provenance.target.model_copy(update={"spec": "models/\udcff"})
    odd = replace(artifact, provenance=artifact.provenance.model_copy(update={"target": record}))
    read = AlignerArtifact.read(odd.write(tmp_path / "odd", "card of \udcff"))
    assert read.provenance.target.spec == "models/\udcff"


def test_the_digest_tells_artifacts_apart(artifact: AlignerArtifact) -> None:
    others = [
        artifact.with_steering(strength=1.0),
        replace(artifact, gate=artifact.gate.with_bias(0.5)),
        replace(artifact, ssv=artifact.ssv + 1e-3),
    ]
    assert len({one.digest() for one in [artifact, *others]}) == 4


# -- saving --------------------------------------------------------------------------------------------------


def test_nothing_but_the_three_files_is_left(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["README.md", "aligner.json", "vectors.safetensors"]
    assert os.listdir(folder.parent) == [folder.name]


def test_an_aligner_is_replaced(artifact: AlignerArtifact, folder: Path) -> None:
    artifact.with_steering(strength=9.0).write(folder, "# new card")
    assert AlignerArtifact.read(folder).steering.strength == 9.0
    assert (folder / "README.md").read_text() == "# new card"
    assert os.listdir(folder.parent) == [folder.name]


def test_parents_are_made_and_a_link_is_followed(artifact: AlignerArtifact, tmp_path: Path) -> None:
    deep = artifact.write(tmp_path / "a" / "b" / "aligner", "")
    link = tmp_path / "link"
    link.symlink_to(deep)
    artifact.with_steering(strength=9.0).write(link, "")
    assert link.is_symlink()
    assert AlignerArtifact.read(deep).steering.strength == 9.0


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", range(1, 4))
def test_a_crash_between_files_leaves_the_old_artifact(
    artifact: AlignerArtifact,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    step: int,
) -> None:
    written = 0
    sync = os.fsync

    def crash(handle: int) -> None:
        nonlocal written
        written += 1
        if written == step:
            raise error
        sync(handle)

    monkeypatch.setattr(artifact_module.os, "fsync", crash)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        artifact.with_steering(strength=9.0).write(folder, "# new card")
    assert same(AlignerArtifact.read(folder), artifact)
    assert (folder / "README.md").read_text() == "# card"
    assert os.listdir(folder.parent) == [folder.name]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", [1, 2])
def test_a_crash_while_folders_are_swapped_leaves_the_old_artifact(
    artifact: AlignerArtifact,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    step: int,
) -> None:
    renamed = 0
    rename = Path.rename

    def crash(self: Path, to: Path) -> Path:
        nonlocal renamed
        renamed += 1
        if renamed == step:
            raise error
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", crash)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        artifact.with_steering(strength=9.0).write(folder, "# new card")
    assert same(AlignerArtifact.read(folder), artifact)
    assert os.listdir(folder.parent) == [folder.name]


def test_what_is_not_an_aligner_is_left_alone(artifact: AlignerArtifact, tmp_path: Path) -> None:
    file, full = tmp_path / "file", tmp_path / "full"
    file.write_text("mine")
    full.mkdir()
    (full / "thesis.txt").write_text("mine")
    for place, words in (
        (file, "is a file"),
        (full, "not an aligner"),
        (file / "below", "cannot be written"),
        (Path("/proc/aligner"), "cannot be written"),
        (tmp_path / ("n" * 400), "cannot be written"),
    ):
        with pytest.raises(InputError, match=words):
            check_output_folder(place)
        with pytest.raises(InputError, match=words):
            artifact.write(place, "")
    assert (full / "thesis.txt").read_text() == file.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "full"]


def test_checking_a_folder_makes_nothing(tmp_path: Path) -> None:
    check_output_folder(tmp_path / "a" / "b")
    (tmp_path / "empty").mkdir()
    check_output_folder(tmp_path / "empty")
    assert os.listdir(tmp_path) == ["empty"]


# -- reading what is damaged ---------------------------------------------------------------------------------


def rewrite(folder: Path, *, tensors: dict[str, torch.Tensor] | None = None, **changes: Any) -> None:
    """Changes an artifact and makes all checksums right again, as a bad program would."""
    file = folder / "aligner.json"
    found = json.loads(file.read_text())
    found.pop("checksum")
    found.update(changes)
    if tensors is not None:
        data = save_tensors({**load_file(folder / "vectors.safetensors"), **tensors})
        (folder / "vectors.safetensors").write_bytes(data)
        found["vectors_sha256"] = artifact_module.hashlib.sha256(data).hexdigest()
    file.write_text(json.dumps({**found, "checksum": checksum(found)}))


NAN = torch.full((4, 32), torch.nan)
ENDS = {"kind": "x", "biases": {"begun": 0.0, "raw": 0.0}, "reads": [{"layer": 1, "offset": 0}]}
END_WEIGHTS = {"ends.weights": torch.ones(1, 32)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tensors": {"ssv": NAN}}, "NaN"),
        ({"tensors": {"srv": NAN}}, "NaN"),
        ({"tensors": {"gate.weights": NAN[:1]}}, "NaN"),
        ({"tensors": {"gate.weights": NAN[:2]}}, "needs weights"),
        ({"tensors": {"ssv": torch.ones(4, 31)}}, "differ"),
        ({"tensors": {"srv": torch.ones(4), "ssv": torch.ones(4)}}, "usable aligner"),
        ({"tensors": {"srv": torch.ones(2, 32), "ssv": torch.ones(2, 32)}}, "do not exist"),
        ({"gate": {"kind": "x", "bias": 0.0, "reads": [{"layer": 9, "offset": 0}]}}, "does not fit"),
        ({"gate": {"kind": "x", "bias": 0.0, "reads": [{"layer": -1, "offset": 0}]}}, "count from 0"),
        ({"gate": {"kind": "x", "bias": float("nan"), "reads": [{"layer": 1, "offset": 0}]}}, "NaN"),
        ({"gate": {"kind": "x", "bias": 0.0, "reads": []}}, "needs weights"),
        ({"gate": {"kind": "x", "bias": 0.0}}, "usable aligner"),
        ({"gate": "open"}, "usable aligner"),
        ({"steering": {"layers": [7], "strength": 1.0}}, "do not exist"),
        ({"steering": {"layers": [], "strength": 1.0}}, "although there is an aligned model"),
        ({"steering": {"layers": [1], "strength": float("inf")}}, "usable aligner"),
        ({"steering": {"layers": [1], "strength": 1.0, "mode": "off"}}, "usable aligner"),
        (
            {"provenance": {}},
            r"usable aligner: target: Field required; .* version of inferaligner that wrote",
        ),
        ({"calibration": {}, "steering": {"strength": 1.0}}, "usable aligner: layers: Field required"),
        ({"ends": ENDS}, "has no weights"),
        ({"ends": {**ENDS, "biases": {"begun": 0.0}}, "tensors": END_WEIGHTS}, "'raw' is missing"),
        ({"ends": {**ENDS, "biases": {"begun": float("nan"), "raw": 0.0}}, "tensors": END_WEIGHTS}, "nan"),
        (
            {"ends": {**ENDS, "reads": [{"layer": 3, "offset": 0}]}, "tensors": END_WEIGHTS},
            "no layer above 1",
        ),
        ({"ends": ENDS, "tensors": {"ends.weights": torch.ones(1, 31)}}, "expected width 32"),
        ({"ends": "open", "tensors": END_WEIGHTS}, "usable aligner"),
    ],
)
def test_unusable_content_is_refused_although_the_checksums_are_right(
    folder: Path, changes: dict[str, Any], words: str
) -> None:
    AlignerArtifact.read(folder)
    rewrite(folder, **changes)
    with pytest.raises(ArtifactError, match=words):
        AlignerArtifact.read(folder)


def test_every_single_altered_setting_is_noticed(folder: Path) -> None:
    file = folder / "aligner.json"
    found = json.loads(file.read_text())
    for name in [name for name in found if name != "schema_version"]:
        file.write_text(json.dumps({**found, name: "other"}))
        with pytest.raises(ArtifactError):
            AlignerArtifact.read(folder)
        file.write_text(json.dumps({key: value for key, value in found.items() if key != name}))
        with pytest.raises(ArtifactError):
            AlignerArtifact.read(folder)


@pytest.mark.parametrize("version", [4, 0, "1", None])
def test_another_schema_version(folder: Path, version: object) -> None:
    rewrite(folder, schema_version=version)
    with pytest.raises(
        ArtifactError, match=f"schema version {version}; this version of inferaligner reads 1"
    ):
        AlignerArtifact.read(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe", b'{"schema_version": 1}', b"[" * 100_000]
)
def test_settings_that_are_no_settings(folder: Path, content: bytes) -> None:
    (folder / "aligner.json").write_bytes(content)
    with pytest.raises(ArtifactError):
        AlignerArtifact.read(folder)


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_vectors(folder: Path, keep: int) -> None:
    file = folder / "vectors.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="checksums differ"):
        AlignerArtifact.read(folder)


def test_vectors_of_another_artifact(artifact: AlignerArtifact, folder: Path, tmp_path: Path) -> None:
    other = replace(artifact, ssv=artifact.ssv + 1).write(tmp_path / "other", "")
    (folder / "vectors.safetensors").write_bytes((other / "vectors.safetensors").read_bytes())
    with pytest.raises(ArtifactError, match="mixed up"):
        AlignerArtifact.read(folder)


def test_a_missing_file_or_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "vectors.safetensors").unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        AlignerArtifact.read(folder)
    for place in (tmp_path / "nothing", tmp_path, folder / "aligner.json", Path("n" * 400)):
        with pytest.raises(ArtifactError, match="not an aligner"):
            AlignerArtifact.read(place)


# -- settings ------------------------------------------------------------------------------------------------


def test_additions_are_the_strength_times_the_direction(artifact: AlignerArtifact) -> None:
    added = artifact.with_steering(layers=(2, 0), strength=0.5).additions()
    assert list(added) == [0, 2]
    assert torch.equal(added[2], 0.5 * artifact.ssv[2])
    unit = artifact.with_steering(layers=(1,), strength=4.0, norm="unit")
    assert unit.additions()[1].norm().item() == pytest.approx(4.0)
    assert torch.equal(artifact.with_steering(strength=1.0).additions("target")[1], artifact.srv[1])


def test_a_strength_per_layer(artifact: AlignerArtifact, tmp_path: Path) -> None:
    shared = artifact.with_steering(layers=(0, 2), strength=0.5, profile=(0.4, 1.6))
    added = shared.additions()
    assert torch.allclose(added[0], 0.2 * artifact.ssv[0]) and torch.allclose(added[2], 0.8 * artifact.ssv[2])
    read = AlignerArtifact.read(shared.write(tmp_path / "a", "card"))
    assert read.steering == shared.steering and read.steering.strengths == {0: 0.2, 2: 0.8}
    assert read.digest() == shared.digest() != artifact.digest()
    # A changed strength scales it; other layers or another norm have no use for it.
    assert read.with_steering(strength=1.0).steering.strengths == {0: 0.4, 2: 1.6}
    for change in ({"layers": (1,)}, {"norm": "unit"}):
        assert read.with_steering(**change).steering.profile is None


def test_without_a_profile_settings_read_as_before(artifact: AlignerArtifact) -> None:
    assert "profile" not in artifact.steering.model_dump(mode="json")
    assert set(artifact.steering.strengths) == set(artifact.steering.layers)


@pytest.mark.parametrize(
    "changes",
    [
        {"profile": (1.0,) * 9},
        {"profile": (float("nan"),) * 2},
        {"strength": float("nan")},
        {"strength": "much"},
        {"layers": ()},
        {"norm": "l1"},
        {"volume": 11},
    ],
)
def test_steering_settings_that_cannot_be(artifact: AlignerArtifact, changes: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="steering settings"):
        artifact.with_steering(**changes)


def test_layers_that_do_not_exist(artifact: AlignerArtifact) -> None:
    with pytest.raises(ArtifactError, match="layers 0 to 3"):
        artifact.with_steering(layers=(4,))


# -- settings alone ------------------------------------------------------------------------------------------


def test_an_update_replaces_settings_and_card_alone(artifact: AlignerArtifact, tmp_path: Path) -> None:
    folder = artifact.write(tmp_path / "a", "card")
    (folder / "mine.txt").write_text("mine")
    changed = artifact.with_steering(strength=9.0)
    changed.update(folder, "new card")
    assert AlignerArtifact.read(folder).steering.strength == 9.0
    assert (folder / "README.md").read_text() == "new card" and (folder / "mine.txt").exists()
    assert len(list(folder.iterdir())) == 4


def test_an_update_wants_the_same_vectors(artifact: AlignerArtifact, tmp_path: Path) -> None:
    folder = artifact.write(tmp_path / "a", "card")
    before = (folder / "aligner.json").read_bytes()
    with pytest.raises(ArtifactError, match="other vectors"):
        replace(artifact, srv=artifact.srv + 1).update(folder, "card")
    with pytest.raises(ArtifactError, match="is not an aligner"):
        artifact.update(tmp_path / "nothing", "card")
    assert (folder / "aligner.json").read_bytes() == before


def test_an_update_that_crashes_leaves_the_old_settings(
    artifact: AlignerArtifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = artifact.write(tmp_path / "a", "card")
    before = (folder / "aligner.json").read_bytes()

    def crash(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(InputError, match="No space left"):
        artifact.with_steering(strength=9.0).update(folder, "card")
    assert (folder / "aligner.json").read_bytes() == before
    assert len(list(folder.iterdir())) == 3
