"""Model specs: the text that a user writes for TARGET or MODEL.

    org/name, org/name@revision     a model on the hub
    org/name/FILE.gguf              a GGUF file on the hub
    path/to/folder                  a model folder, or a PEFT adapter folder (it has adapter_config.json)
    path/to/FILE.gguf               a GGUF file
    builtin:NAME                    a model that needs no hub

Reading a spec touches the file system but neither the network nor any weights.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from inferaligner.errors import ModelLoadError
from inferaligner.storage.paths import expanded

BUILTIN_PREFIX = "builtin:"

# What the hub accepts as a repository: an optional owner and a name.
_REPOSITORY = r"[A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?"
_HUB = re.compile(rf"(?P<repository>{_REPOSITORY})(?:@(?P<revision>[\w./-]+))?")
_HUB_FILE = re.compile(
    r"(?P<repository>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)/(?P<file>[^@]+\.gguf)(?:@(?P<revision>[\w./-]+))?"
)


class Kind(Enum):
    """The kinds of model specs."""

    BUILTIN = "builtin"
    GGUF = "gguf"
    ADAPTER = "adapter"
    FOLDER = "folder"
    HUB = "hub"
    HUB_GGUF = "hub_gguf"


@dataclass(frozen=True)
class ModelSpec:
    """A parsed spec.

    Attributes:
        text: The spec as the user wrote it.
        kind: Its kind.
        location: The path, the hub id, or the name of the built-in model.
        revision: Branch, tag or commit on the hub, if the spec has one.
        file: The GGUF file inside a hub repository.
    """

    text: str
    kind: Kind
    location: str
    revision: str | None = None
    file: str | None = None


def parse_spec(spec: str | os.PathLike[str]) -> ModelSpec:
    """Parses a model spec. A file or folder on this machine takes precedence over the hub.

    Raises:
        ModelLoadError: The spec is neither a path on this machine nor a hub id, or a folder holds neither a
            model nor an adapter.
    """
    text = os.fspath(spec).strip()
    if text.startswith(BUILTIN_PREFIX):
        return ModelSpec(text, Kind.BUILTIN, text.removeprefix(BUILTIN_PREFIX))
    path = expanded(text)
    if text and path.is_dir():
        return ModelSpec(text, _kind_of_folder(path), str(path))
    if text and path.is_file():
        if path.suffix.lower() != ".gguf":
            raise ModelLoadError(
                f"{text} is a file; expected a .gguf file or a folder with config.json. "
                "Give the folder that holds the model."
            )
        return ModelSpec(text, Kind.GGUF, str(path))
    if not text.startswith((".", "/", "~")) and "\\" not in text:
        if match := _HUB_FILE.fullmatch(text):
            return ModelSpec(text, Kind.HUB_GGUF, match["repository"], match["revision"], match["file"])
        if not text.endswith(".gguf") and (match := _HUB.fullmatch(text)):
            return ModelSpec(text, Kind.HUB, match["repository"], match["revision"])
    raise ModelLoadError(
        f"There is no model at {text!r}. Expected a folder, a .gguf file, a PEFT adapter folder, a hub id "
        "such as org/name, or builtin:NAME. Check the spelling and the folder you are in."
    )


def _kind_of_folder(folder: Path) -> Kind:
    # An adapter folder may have its base's config.json too; transformers reads such a folder as an adapter.
    if (folder / "adapter_config.json").is_file():
        return Kind.ADAPTER
    if (folder / "config.json").is_file():
        return Kind.FOLDER
    names = sorted(entry.name for entry in folder.iterdir())
    gguf = [name for name in names if name.lower().endswith(".gguf")]
    if gguf:
        raise ModelLoadError(
            f"The folder {folder} holds GGUF files ({', '.join(gguf[:5])}) and no config.json. "
            f"Name the file: {folder / gguf[0]}"
        )
    adapters = [name for name in names if (folder / name / "adapter_config.json").is_file()]
    if adapters:
        raise ModelLoadError(
            f"The folder {folder} holds {len(adapters)} adapters in folders of their own "
            f"({', '.join(adapters[:5])}). Name the adapter: {folder / adapters[0]}"
        )
    listing = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    raise ModelLoadError(
        f"The folder {folder} has no config.json and no adapter_config.json (files: {listing or 'none'}); "
        "expected a model folder or a PEFT adapter folder. Give the folder that save_pretrained wrote."
    )
