"""Prints pip constraints that hold every library of pyproject.toml at its lower bound.

torch keeps the build of constraints.txt: the oldest ones exist for Linux with CUDA only, several gigabytes.
Tools of the `dev` extra, and extras with an environment of their own, are no part of what is promised.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

_LEFT_OUT = ("dev", "vllm", "reproduction")
_LIBRARY = re.compile(r"(?P<name>[A-Za-z0-9_-]+)>=(?P<bound>[0-9.]+)")


def lower_bounds(pyproject: Path) -> dict[str, str]:
    """From the name of each library to the oldest version that pyproject.toml allows."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for name in extras if name not in _LEFT_OUT for line in extras[name])]
    found = [match for line in lines if (match := _LIBRARY.match(line))]
    return {match["name"]: match["bound"] for match in found if match["name"] != "torch"}


if __name__ == "__main__":
    for name, bound in lower_bounds(Path(__file__).parents[1] / "pyproject.toml").items():
        print(f"{name}=={bound}")
