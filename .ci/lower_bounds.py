"""Prints pip constraints that hold every library of pyproject.toml at its lower bound.

torch keeps the build that constraints.txt names: the oldest builds for Linux all come with CUDA, several
gigabytes. The tools of `dev` (among them the openai client, whose newest features the tests of the
servers use), and extras that these tests do not install, are left to pip.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib  # type: ignore[no-redef]

ROOT = Path(__file__).parents[1]
_LEFT_OUT = ("dev", "eval", "vllm", "reproduction")
_LIBRARY = re.compile(r"(?P<name>[A-Za-z0-9_-]+)>=(?P<bound>[0-9.]+)")


def lower_bounds(project: dict[str, Any], constraints: str) -> list[str]:
    """`name==version` for each library; `project` is that table of pyproject.toml."""
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *(line for n in extras if n not in _LEFT_OUT for line in extras[n])]
    bounds = {m["name"]: m["bound"] for line in wanted if (m := _LIBRARY.match(line))}
    torch = re.search(r"^torch==(\S+)", constraints, re.MULTILINE)
    assert torch is not None, "constraints.txt names no torch"
    return [f"{name}=={bound}" for name, bound in {**bounds, "torch": torch[1]}.items()]


if __name__ == "__main__":
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    print("\n".join(lower_bounds(table, (ROOT / "constraints.txt").read_text(encoding="utf-8"))))
