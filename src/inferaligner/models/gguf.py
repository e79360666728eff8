"""GGUF files, converted once into a model folder that transformers reads fast.

Reading a GGUF file takes 20 s for a small model and minutes for a large one, every time. So the first use
writes the model as bfloat16 safetensors, with its tokenizer, into a cache folder named after the SHA-256 of
the file and the version of this converter; later uses load that folder. The conversion writes into a
temporary folder that is renamed at the end, so that a folder under its final name is always complete.

The cache is ``$INFERALIGNER_CACHE``, else ``inferaligner`` in the user's cache folder. It may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from inferaligner.errors import MissingExtraError, ModelLoadError
from inferaligner.models.templates import ensure_one_bos, stop_at_turn_ends
from inferaligner.storage.paths import expanded

logger = logging.getLogger(__name__)

# Increase this when the result of a conversion changes: older folders are then not used any more.
CONVERTER_VERSION = 1

_SPLIT_NAME = re.compile(r"-\d{5}-of-(\d{5})\.gguf$", re.IGNORECASE)


def cache_root() -> Path:
    """The folder of files that InferAligner can recompute."""
    if chosen := os.environ.get("INFERALIGNER_CACHE"):
        return expanded(chosen)
    if sys.platform == "win32" and (local := os.environ.get("LOCALAPPDATA")):
        return Path(local) / "inferaligner" / "cache"
    if chosen := os.environ.get("XDG_CACHE_HOME"):
        return Path(chosen) / "inferaligner"
    return expanded("~/.cache/inferaligner")


def converted(file: Path) -> Path:
    """The model folder for a GGUF file: from the cache, or converted now.

    Raises:
        ModelLoadError: The file is not GGUF, is cut off, is one part of several, has an architecture that
            transformers cannot read, or the cache cannot be written.
        MissingExtraError: A conversion is needed and ``gguf`` or ``accelerate`` is not installed.
    """
    _check_name_and_magic(file)
    folder = cache_root() / "gguf" / f"{_sha256(file)}-v{CONVERTER_VERSION}"
    if (folder / "conversion.json").is_file():
        return folder
    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"Reading {file.name} needs {' and '.join(missing)}. Install it with "
            '`pip install "inferaligner[models]"`.'
        )
    metadata = _read_metadata(file)
    # A warning, so that it is visible without configured logging: it explains the pause.
    logger.warning("Converting %s into %s. This happens once.", file.name, folder.parent)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="converting-", dir=folder.parent))
    except OSError as error:
        raise ModelLoadError(
            f"The cache folder {folder.parent} cannot be written ({error.strerror or error}). "
            "Set INFERALIGNER_CACHE to a folder that can."
        ) from error
    try:
        _convert(file, metadata, temporary)
        try:
            temporary.rename(folder)
        except OSError:
            # Either another process has finished first, whose result is as good, or the folder is broken.
            if not (folder / "conversion.json").is_file():
                shutil.rmtree(folder)
                temporary.rename(folder)
    except OSError as error:
        raise ModelLoadError(
            f"{file.name} could not be converted into {folder.parent}: {error}. Make room there, or set "
            "INFERALIGNER_CACHE to another folder."
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    logger.info("Converted %s into %s.", file.name, folder)
    return folder


def prepare_tokenizer(tokenizer: Any, metadata: dict[str, Any]) -> None:
    """Makes a tokenizer that transformers built from GGUF metadata behave like the model's own.

    Args:
        tokenizer: Changed in place.
        metadata: The scalar entries of the GGUF file, by key.
    """
    # Some releases of transformers, such as 5.17, give a role to another token than the file does.
    for role, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        place = metadata.get(f"tokenizer.ggml.{key}_token_id")
        token = None if place is None else tokenizer.convert_ids_to_tokens(int(place))
        if token is not None and getattr(tokenizer, f"{role}_token") != token:
            setattr(tokenizer, f"{role}_token", token)
    # transformers drops this entry. A sentencepiece vocabulary adds <bos> unless the entry is false.
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", metadata.get("tokenizer.ggml.model") == "llama")
    if adds_bos and tokenizer.bos_token is not None:
        tokenizer.add_bos_token = True
    ensure_one_bos(tokenizer)


def _check_name_and_magic(file: Path) -> None:
    if (part := _SPLIT_NAME.search(file.name)) and int(part[1]) > 1:
        raise ModelLoadError(
            f"{file.name} is one of {int(part[1])} parts of a model; expected a whole GGUF file. Merge the "
            "parts with `llama-gguf-split --merge`."
        )
    try:
        with file.open("rb") as stream:
            magic = stream.read(4)
    except OSError as error:
        raise ModelLoadError(f"{file} cannot be read ({error.strerror or error}).") from error
    if magic != b"GGUF":
        raise ModelLoadError(
            f"{file} is not a GGUF file: it begins with {magic!r} instead of b'GGUF'. If it is small, it may "
            "be a pointer to the real file, or an error page; download it again."
        )


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _read_metadata(file: Path) -> dict[str, Any]:
    """The scalar metadata of a GGUF file; reading it also checks that every tensor is complete."""
    import gguf

    try:
        reader = gguf.GGUFReader(str(file))
        return {
            key: field.contents()
            for key, field in reader.fields.items()
            if field.types and field.types[0] != gguf.GGUFValueType.ARRAY
        }
    except Exception as error:  # a cut-off file makes the reader raise errors of many types
        raise ModelLoadError(
            f"{file} is cut off or damaged: {error}. Its size is {file.stat().st_size:,} bytes; download it "
            "again."
        ) from error


def _convert(file: Path, metadata: dict[str, Any], folder: Path) -> None:
    import transformers

    # Plain tensors, not blocks that need a kernel: the copy in the cache is an ordinary model. transformers
    # before 5.17 has no such setting and always makes plain tensors.
    plain: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):
        plain["quantization_config"] = transformers.GgufConfig(dequantize=True)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            **plain,
        )
    except Exception as error:
        raise ModelLoadError(
            f"transformers {transformers.__version__} cannot read {file.name} (architecture "
            f"{metadata.get('general.architecture', 'unknown')}): {error}. Give the model's original folder "
            "or hub id."
        ) from error
    prepare_tokenizer(tokenizer, metadata)
    # The weights are ordinary tensors now; save_pretrained would refuse them because of these attributes.
    for mark in ("hf_quantizer", "quantization_method"):
        if hasattr(model, mark):
            delattr(model, mark)
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    end_of_turn = metadata.get("tokenizer.ggml.eot_token_id")
    stop_at_turn_ends(model, tokenizer, [] if end_of_turn is None else [int(end_of_turn)])
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    note = {
        "source": file.name,
        "converter_version": CONVERTER_VERSION,
        "transformers": transformers.__version__,
        "name": metadata.get("general.name"),
        "license": metadata.get("general.license"),
    }
    (folder / "conversion.json").write_text(json.dumps(note, indent=2), encoding="utf-8")
