"""Steering vectors as a control vector for llama.cpp and repeng: a GGUF file.

    general.architecture        "controlvector"
    controlvector.model_hint    model type, such as "llama"; for people, no loader checks it
    controlvector.layer_count   number of directions in the file
    direction.N                 float32 [width], added to the residual stream after decoder layer N

N is the layer number used everywhere in this package, counted from 0. In llama.cpp's sources, model graphs
call `build_cvec(cur, il)` at the end of decoder layer `il`, after the MLP's residual add, and
`llama_adapter_cvec::apply` and `llama_control_vector_load_one` use direction N for `il == N`. repeng
(`hidden_states[layer + 1]`) numbers layers in the same way. llama.cpp refuses a file with a direction for
layer 0, and expects every tensor one-dimensional and float32.

The strength is part of the vectors: at scale 1 they are α·θ_l. The file has no gate: llama.cpp adds the
vectors at every token of every prompt.
"""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import ArtifactError, InputError, MissingExtraError

_ARCHITECTURE = "controlvector"
_DIRECTION = re.compile(r"direction\.(\d{1,6})")


def write_control_vector(artifact: AlignerArtifact, file: str | Path) -> Path:
    """Writes the vectors α·θ_l of the steered layers, in one step.

    Args:
        artifact: with steering vectors.
        file: to create or replace.

    Returns:
        The file.

    Raises:
        InputError: the artifact has no steering vectors, or steers layer 0, which llama.cpp cannot do; or the
            file cannot be written.
        MissingExtraError: without the `gguf` package.
    """
    gguf = _gguf()
    if artifact.gate_only:
        raise InputError("This aligner is a gate alone: it has no steering vectors to export.")
    additions = artifact.additions()
    if 0 in additions:
        raise InputError(
            "The aligner steers layer 0, and a control vector of llama.cpp begins with layer 1; leaving the "
            "layer out would change what the aligner does. Fit one with `steer_layers` from 1 upward."
        )
    place = Path(file)
    scratch: str | None = None
    try:
        handle, scratch = tempfile.mkstemp(prefix=f".{place.name}-", dir=place.parent)
        os.close(handle)
        writer = gguf.GGUFWriter(scratch, _ARCHITECTURE)
        writer.add_string(f"{_ARCHITECTURE}.model_hint", artifact.provenance.target.model.model_type)
        writer.add_uint32(f"{_ARCHITECTURE}.layer_count", len(additions))
        for layer, vector in additions.items():
            writer.add_tensor(f"direction.{layer}", np.ascontiguousarray(vector.float().numpy()))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        os.chmod(scratch, 0o644)
        os.replace(scratch, place)
        scratch = None
    except OSError as error:
        raise InputError(f"{place} cannot be written ({error.strerror}). Give another file.") from None
    finally:
        if scratch is not None:
            Path(scratch).unlink(missing_ok=True)
    return place


def read_control_vector(file: str | Path) -> dict[int, Tensor]:
    """Reads a control vector of `write_control_vector`, repeng or llama.cpp's cvector-generator.

    Returns:
        The vector `[width]` (float32) to add after each decoder layer, by layer number.

    Raises:
        ArtifactError: the file is no control vector, or is damaged.
        InputError: there is no such file.
        MissingExtraError: without the `gguf` package.
    """
    place = Path(file)
    if not place.is_file():
        raise InputError(f"There is no file {place}; expected a control vector (.gguf).")
    gguf = _gguf()
    try:
        reader = gguf.GGUFReader(place)
        field = reader.get_field("general.architecture")
        architecture = None if field is None else str(bytes(field.parts[-1]), "utf-8", "replace")
        tensors = {tensor.name: (tensor.tensor_type, np.array(tensor.data)) for tensor in reader.tensors}
    except Exception as error:  # for a damaged file the reader raises errors of many types
        raise ArtifactError(
            f"{place} cannot be read as GGUF ({str(error) or type(error).__name__}): truncated, or another "
            "kind of file. Export it again."
        ) from None
    if architecture != _ARCHITECTURE:
        raise ArtifactError(
            f"{place} holds {architecture or 'something else'}; expected a control vector ({_ARCHITECTURE})."
        )
    directions: dict[int, Tensor] = {}
    for name, (kind, data) in tensors.items():
        match = _DIRECTION.fullmatch(name)
        if match is None:
            continue
        if kind != gguf.GGMLQuantizationType.F32 or data.ndim != 1 or int(match[1]) < 1:
            raise ArtifactError(
                f"{place}: {name} is {kind.name} {list(data.shape)}; expected float32 [width], "
                "for a layer from 1 up."
            )
        directions[int(match[1])] = torch.from_numpy(data.astype(np.float32))
    if not directions:
        raise ArtifactError(f"{place} has no tensor direction.N; expected one for each steered layer.")
    if len({len(vector) for vector in directions.values()}) != 1:
        raise ArtifactError(f"{place}: the directions differ in width; expected one width for all layers.")
    if not all(torch.isfinite(vector).all() for vector in directions.values()):
        raise ArtifactError(f"{place} holds NaN or infinity. Export it again.")
    return dict(sorted(directions.items()))


def _gguf() -> Any:
    try:
        import gguf
    except ImportError:
        raise MissingExtraError(
            "Control vectors need the gguf package, which is not installed. "
            'Install it: pip install "inferaligner[models]"'
        ) from None
    return gguf
