"""The artifact: gate, vectors, settings and provenance in one folder.

    aligner.json          settings, fingerprints, calibration figures, and a checksum of all that
    vectors.safetensors   gate.weights [reads, width]; srv, ssv [layers, width] (mean differences, float32);
                          learned [layers, width], where vectors were learned from answers;
                          monitor.weights [width], where the aligner has a monitor;
                          ends.weights [reads, width], of the gate of begun answers and raw text
    README.md             the model card

Writing is atomic, reading verifies all checksums, and nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from inferaligner.errors import ArtifactError, InputError
from inferaligner.method.end_gate import EndGate
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.method.steering_settings import SteeringSettings
from inferaligner.method.vectors import unit
from inferaligner.models.fingerprint import ModelFingerprint, TokenizerFingerprint
from inferaligner.storage.artifact_settings import (
    LEARNED_SCHEMA_VERSION,
    MONITOR_SCHEMA_VERSION,
    SCHEMA_VERSION,
    SETTINGS_FILE,
    checksum,
    read_settings,
)
from inferaligner.storage.atomic_io import replace_file, swap_folder
from inferaligner.storage.json_io import dump, plain
from inferaligner.storage.operating_point_record import OperatingPoint, read_operating_point

VECTORS_FILE, CARD_FILE = "vectors.safetensors", "README.md"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(_Record):
    """A model: the user's name for it, its fingerprints, and the digest of its weights.

    `weights` is None in artifacts that were written before it was recorded.
    """

    spec: str
    model: ModelFingerprint
    tokenizer: TokenizerFingerprint
    weights: str | None = None


class Provenance(_Record):
    """The models, prompts and library versions of a fit."""

    target: ModelRecord
    aligned: ModelRecord | None  # None for a gate alone
    prompts: dict[str, Any]  # sources, counts and the digest of the contrast set
    versions: dict[str, str]
    created: str
    system_prompt: str | None = None

    @property
    def guide(self) -> str:
        """The user's name for the aligned model, or "none"."""
        return "none" if self.aligned is None else self.aligned.spec


@dataclass(frozen=True)
class AlignerArtifact:
    """The result of a fit, and all that an engine needs of it. Tensors are float32 on the CPU.

    Raises:
        ArtifactError: the parts do not fit together, or a vector is not finite.

    Example:
        >>> artifact = AlignerArtifact.read("my-aligner")
        >>> artifact.gate.last_layer, artifact.steering.layers
    """

    gate: GuidanceGate
    steering: SteeringSettings
    srv: Tensor  # [layers, width], mean difference of the target model
    ssv: Tensor  # [layers, width], mean difference of the aligned model; zeros for a gate alone
    provenance: Provenance
    calibration: dict[str, Any]  # figures and tables of the fit, plain JSON
    monitor: AnswerMonitor | None = None  # reads answers while they are generated
    learned: Tensor | None = None  # [layers, width], from answers; steers in place of the SSV
    end_gate: EndGate | None = None  # reads begun answers and raw text at their ends

    def __post_init__(self) -> None:
        depth, width = self.srv.shape
        if self.ssv.shape != self.srv.shape:
            raise ArtifactError(
                f"SRV {tuple(self.srv.shape)} and SSV {tuple(self.ssv.shape)} differ in [layers, width]; "
                "the aligned model must have the target's width and depth."
            )
        if self.learned is not None and self.learned.shape != self.srv.shape:
            raise ArtifactError(
                f"SRV {tuple(self.srv.shape)} and learned vectors {tuple(self.learned.shape)} differ in "
                "[layers, width]."
            )
        vectors = [self.srv, self.ssv, *([] if self.learned is None else [self.learned])]
        if not all(bool(torch.isfinite(tensor).all()) for tensor in vectors):
            raise ArtifactError("The vectors hold NaN or infinity. The artifact is damaged: fit it again.")
        if self.gate.weights.shape[1] != width or self.gate.last_layer >= depth:
            raise ArtifactError(f"The gate does not fit vectors of {depth} layers and width {width}.")
        if self.end_gate is not None:
            self.end_gate.check_fits(width, self.gate.last_layer)
        if self.monitor is not None and (len(self.monitor.weights) != width or self.monitor.layer >= depth):
            raise ArtifactError(f"The monitor does not fit vectors of {depth} layers and width {width}.")
        steered = self.steering.layers
        if (not steered) != (self.provenance.aligned is None):
            raise ArtifactError(
                "No decoder layer is steered, although there is an aligned model."
                if not steered
                else "Decoder layers are steered, although there is no aligned model to take vectors from."
            )
        if self.monitor is not None and not steered:
            raise ArtifactError(
                "There is a monitor, although no decoder layer is steered: opening rows has no effect."
            )
        if steered and (min(steered) < 0 or max(steered) >= depth):
            raise ArtifactError(
                f"Steered layers {list(self.steering.layers)} do not exist: there are layers 0 to "
                f"{depth - 1}."
            )

    @property
    def gate_only(self) -> bool:
        """Whether there are no steering vectors, so that open prompts can only be answered with a text."""
        return not self.steering.layers

    @property
    def operating_point(self) -> OperatingPoint | None:
        """The operating point of the gate; None in artifacts that were written before it was recorded.

        Raises:
            ArtifactError: the record is invalid.
        """
        return read_operating_point(self.calibration)

    @property
    def monitor_point(self) -> OperatingPoint | None:
        """The operating point of the monitor, on answers; None without a monitor.

        Raises:
            ArtifactError: the record is invalid.
        """
        return read_operating_point(self.calibration.get("monitor") or {})

    def directions(self, source: Literal["aligned", "target"] = "aligned") -> Tensor:
        """The steering direction θ of every layer, in the settings' norm.

        Args:
            source: "aligned" for the SSV or the vectors learned from answers, "target" for the SRV (a
            control).

        Returns:
            `[layers, width]`.
        """
        aligned = self.ssv if self.learned is None else self.learned
        vectors = aligned if source == "aligned" else self.srv
        return unit(vectors) if self.steering.norm == "unit" else vectors

    def additions(self, source: Literal["aligned", "target"] = "aligned") -> dict[int, Tensor]:
        """The vector α·p_l·θ_l `[width]` to add at each steered layer, by layer."""
        directions = self.directions(source)
        return {layer: alpha * directions[layer] for layer, alpha in self.steering.strengths.items()}

    def with_steering(self, **changes: Any) -> AlignerArtifact:
        """A copy with other steering settings; `changes` are fields of `SteeringSettings`.

        Another strength keeps the profile over layers; other layers or another norm drop it.

        Raises:
            InputError: the settings are invalid.
        """
        kept = self.steering.model_dump()
        if {"layers", "norm"} & set(changes):
            kept.pop("profile", None)
        try:
            settings = SteeringSettings(**{**kept, **changes})
        except ValidationError as error:
            raise InputError(f"The steering settings {changes} cannot be used: {error}") from None
        if not settings.layers:
            raise InputError(f"The steering settings {changes} cannot be used: no layer would be steered.")
        return replace(self, steering=settings)

    # -- saving and loading --------------------------------------------------------------------------

    def write(self, folder: str | Path, card: str) -> Path:
        """Writes the artifact; an existing artifact in the folder is replaced in one step.

        Args:
            folder: created where it does not exist.
            card: text of the model card.

        Raises:
            InputError: the folder cannot be written to, or holds something else.
        """
        check_output_folder(folder)
        # Resolved, so that a symbolic link stays, and its target is replaced.
        place = Path(folder).resolve()
        vectors = self._vectors()
        contents = {
            VECTORS_FILE: vectors,
            SETTINGS_FILE: dump(self._settings(vectors), indent=2, ascii_only=True).encode(),
            CARD_FILE: card.encode("utf-8", "replace"),
        }
        fresh: Path | None = None
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            fresh = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
            for name, content in contents.items():
                with (fresh / name).open("wb") as file:
                    file.write(content)
                    file.flush()
                    os.fsync(file.fileno())
            fresh.chmod(0o755)
            swap_folder(fresh, place)
        except OSError as error:
            raise _unwritable(Path(folder), error) from None
        finally:
            if fresh is not None:
                shutil.rmtree(fresh, ignore_errors=True)
        return Path(folder)

    def update(self, folder: str | Path, card: str) -> Path:
        """Replaces settings and card of the artifact in a folder, each file in one step, the settings first.

        Args:
            folder: of an artifact with the same vectors; its other files stay.
            card: text of the model card.

        Raises:
            ArtifactError: the folder holds other vectors.
            InputError: the folder cannot be written to.
        """
        place = Path(folder)
        vectors = self._vectors()
        on_disk = read_settings(place).get("vectors_sha256")
        if hashlib.sha256(vectors).hexdigest() != on_disk:
            raise ArtifactError(
                f"{place} holds other vectors; expected the vectors that this aligner was read with."
            )
        settings = dump(self._settings(vectors), indent=2, ascii_only=True).encode()
        for name, content in ((SETTINGS_FILE, settings), (CARD_FILE, card.encode("utf-8", "replace"))):
            try:
                replace_file(place / name, content)
            except OSError as error:
                raise InputError(f"{place / name} cannot be written ({error.strerror}).") from None
        return place

    def digest(self) -> str:
        """SHA-256 of the whole artifact; the same before it is written and after it is read."""
        return str(self._settings(self._vectors())["checksum"])

    @property
    def _schema_version(self) -> int:
        """The lowest version with all fields in use, so that older releases refuse unknown fields."""
        if self.learned is not None:
            return LEARNED_SCHEMA_VERSION
        return SCHEMA_VERSION if self.monitor is None else MONITOR_SCHEMA_VERSION

    def _vectors(self) -> bytes:
        tensors = {"gate.weights": self.gate.weights, "srv": self.srv, "ssv": self.ssv}
        if self.learned is not None:
            tensors["learned"] = self.learned
        if self.monitor is not None:
            tensors["monitor.weights"] = self.monitor.weights
        if self.end_gate is not None:
            tensors["ends.weights"] = self.end_gate.gate.weights
        return save_tensors({name: tensor.float().contiguous() for name, tensor in tensors.items()})

    def _settings(self, vectors: bytes) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "schema_version": self._schema_version,
            "gate": {
                "kind": self.gate.kind,
                "bias": self.gate.bias,
                "reads": [{"layer": read.layer, "offset": read.offset} for read in self.gate.reads],
            },
            "steering": self.steering.model_dump(mode="json"),
            "provenance": self.provenance.model_dump(mode="json"),
            "calibration": self.calibration,
            "vectors_sha256": hashlib.sha256(vectors).hexdigest(),
        }
        if (ends := self.end_gate) is not None:
            settings["ends"] = ends.settings()
        if self.monitor is not None:
            settings["monitor"] = {name: getattr(self.monitor, name) for name in _MONITOR_FIELDS}
        # In the form that JSON gives back: values that are not finite are null, keys are text.
        settings = plain(settings)
        return {**settings, "checksum": checksum(settings)}

    @classmethod
    def read(cls, folder: str | Path) -> AlignerArtifact:
        """Reads and verifies an artifact.

        Raises:
            ArtifactError: a file is missing, damaged or altered, or has an unknown version.
        """
        place = Path(folder)
        settings = read_settings(place)
        try:
            data = (place / VECTORS_FILE).read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"{place / VECTORS_FILE} cannot be read ({error.strerror}). Copy the whole folder again."
            ) from None
        if hashlib.sha256(data).hexdigest() != settings.get("vectors_sha256"):
            raise ArtifactError(
                f"{VECTORS_FILE} is not the file that {SETTINGS_FILE} was written with (checksums differ): "
                "truncated, altered or mixed up. Copy the folder again or fit it again."
            )
        try:
            tensors = load_tensors(data)
            reads = tuple(GateRead(**read) for read in settings["gate"]["reads"])
            return cls(
                gate=GuidanceGate(
                    settings["gate"]["kind"], reads, tensors["gate.weights"], float(settings["gate"]["bias"])
                ),
                steering=SteeringSettings(**settings["steering"]),
                srv=tensors["srv"],
                ssv=tensors["ssv"],
                provenance=Provenance(**settings["provenance"]),
                calibration=settings["calibration"],
                monitor=_read_monitor(settings, tensors),
                learned=tensors["learned"] if settings["schema_version"] == LEARNED_SCHEMA_VERSION else None,
                end_gate=EndGate.read(settings.get("ends"), tensors.get("ends.weights")),
            )
        except (SafetensorError, KeyError, TypeError, ValueError, ValidationError) as error:
            raise ArtifactError(
                f"{place} does not hold a usable aligner: {_reason(error)}. Fit it again, or read it with "
                "the version of inferaligner that wrote it."
            ) from None


_MONITOR_FIELDS = ("kind", "layer", "window", "centre", "bias")


def _read_monitor(settings: dict[str, Any], tensors: dict[str, Tensor]) -> AnswerMonitor | None:
    version = settings["schema_version"]
    if version == SCHEMA_VERSION or (version == LEARNED_SCHEMA_VERSION and "monitor" not in settings):
        return None
    fields = {name: settings["monitor"][name] for name in _MONITOR_FIELDS}
    return AnswerMonitor(weights=tensors["monitor.weights"], **fields)


def _reason(error: Exception) -> str:
    """The message of an error, without pydantic's copy of the whole input."""
    if isinstance(error, ValidationError):
        return "; ".join(f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return str(error)


def check_output_folder(folder: str | Path) -> None:
    """Checks that an artifact can be written to a folder. Called before long work.

    Raises:
        InputError: it cannot.
    """
    place = Path(folder)
    try:
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file; expected a folder for the aligner. Choose another one.")
        if place.exists() and any(place.iterdir()) and not (place / SETTINGS_FILE).exists():
            raise InputError(f"{place} exists and is not an aligner; choose another output folder.")
        parent = place.resolve().parent
        while not parent.exists():
            parent = parent.parent
        # Only a real attempt gives the right answer for read-only mounts, quotas and the root user.
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=parent):
            pass
    except OSError as error:
        raise _unwritable(place, error) from None


def _unwritable(place: Path, error: OSError) -> InputError:
    return InputError(
        f"The aligner cannot be written to {place} ({error.strerror}). Choose another output folder."
    )
