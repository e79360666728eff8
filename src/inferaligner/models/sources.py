"""From a model spec to its files: built-in models, GGUF files and adapters all lead to a base model, its
tokenizer and the adapters on it."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from inferaligner.errors import ModelLoadError
from inferaligner.models.builtin import locate_builtin
from inferaligner.models.gguf import converted
from inferaligner.models.hub import download, look_up
from inferaligner.models.peft_adapters import read_adapter, require_peft
from inferaligner.models.specs import Kind, ModelSpec, parse_spec

# An adapter whose base is an adapter is common; more than ten in a row are a circle.
_MAX_STEPS = 10

_TOKENIZER_FILES = ("tokenizer*", "vocab*", "*.model", "*.tiktoken", "tekken.json")


@dataclass(frozen=True)
class Checkpoint:
    """The places of the files of one model.

    Attributes:
        weights: Folder or hub id of the base model.
        revision: Revision on the hub, if ``weights`` is a hub id.
        tokenizer: Folder or hub id of the tokenizer.
        adapters: PEFT adapter folders, in the order in which they are applied to the base.
        template: File of a chat template that takes precedence over the tokenizer's own.
    """

    weights: str
    revision: str | None
    tokenizer: str
    adapters: tuple[Path, ...] = ()
    template: Path | None = None


def resolve(spec: str | os.PathLike[str]) -> Checkpoint:
    """Locates the files of a model spec, and converts a GGUF file that is not in the cache yet.

    Raises:
        ModelLoadError: The spec names no model, or the model cannot be used.
        MissingExtraError: An optional package is needed to read it.
    """
    return _resolve(spec, steps=0)


def _resolve(text: str | os.PathLike[str], steps: int) -> Checkpoint:
    if steps > _MAX_STEPS:
        raise ModelLoadError(
            f"{text} leads to an adapter whose base is an adapter, more than {_MAX_STEPS} times over; "
            "expected a model at the end. Check base_model_name_or_path in their adapter_config.json."
        )
    spec = parse_spec(text)
    if spec.kind is Kind.BUILTIN:
        return _builtin(spec, steps)
    if spec.kind is Kind.ADAPTER:
        return _adapter(Path(spec.location), steps)
    if spec.kind in (Kind.HUB, Kind.HUB_GGUF):
        return _hub(spec, steps)
    folder = converted(Path(spec.location)) if spec.kind is Kind.GGUF else Path(spec.location)
    return Checkpoint(weights=str(folder), revision=None, tokenizer=str(folder))


def _builtin(spec: ModelSpec, steps: int) -> Checkpoint:
    builtin = locate_builtin(spec.location)
    try:
        return _resolve(builtin.spec, steps + 1)
    except ModelLoadError as error:
        raise ModelLoadError(
            f"{spec.text} could not be loaded: {error} To get it, {builtin.ways}."
        ) from error


def _adapter(folder: Path, steps: int) -> Checkpoint:
    adapter = read_adapter(folder)
    require_peft(folder)
    try:
        base = _resolve(adapter.base, steps + 1)
    except ModelLoadError as error:
        raise ModelLoadError(
            f"The adapter in {folder} needs its base model {adapter.base!r}: {error} Put the base there, or "
            "set base_model_name_or_path in adapter_config.json."
        ) from error
    # Training may have added tokens or a chat template, so the adapter's own tokenizer takes precedence.
    adapters = (*base.adapters, folder)
    if has_tokenizer(folder):
        return replace(base, tokenizer=str(folder), adapters=adapters, template=None)
    template = folder / "chat_template.jinja"
    return replace(base, adapters=adapters, template=template if template.is_file() else base.template)


def _hub(spec: ModelSpec, steps: int) -> Checkpoint:
    repository = look_up(spec.location, spec.revision)
    if spec.kind is Kind.HUB_GGUF and spec.file is not None:
        if spec.file not in repository.files:
            raise ModelLoadError(f"{spec.location} on the hub has no file {spec.file}. Check its file list.")
        return _resolve(download(repository, spec.file) / spec.file, steps + 1)
    if "adapter_config.json" in repository.files:
        # Adapters are small: the whole folder is downloaded, because it may have a tokenizer.
        return _adapter(download(repository, "*.json", "*.safetensors", "*.bin", "*.model", "*.jinja"), steps)
    if "config.json" in repository.files:
        return Checkpoint(repository.source, repository.revision, repository.source)
    gguf = sorted(name for name in repository.files if name.endswith(".gguf"))
    advice = f"Name one of its GGUF files: {spec.location}/{gguf[0]}" if gguf else "Give another model."
    raise ModelLoadError(
        f"{spec.text} on the hub has no config.json; expected a model that transformers can read. {advice}"
    )


def has_tokenizer(folder: Path) -> bool:
    """Whether ``folder`` has any file of a tokenizer."""
    return any(True for pattern in _TOKENIZER_FILES for _ in folder.glob(pattern))
