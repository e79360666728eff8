"""Imports run downward only; the list below is the architecture, highest layer first."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "inferaligner"

# A module belongs to the longest prefix that matches it. Modules of one layer may import each other.
LAYERS: list[tuple[str, ...]] = [
    ("cli",),
    ("server", "evaluation", "reporting"),
    ("vllm",),
    ("aligner",),
    ("fit",),
    ("steering",),
    ("artifact", "storage", "server_shared"),
    ("method", "models.generation"),
    ("judges",),
    ("prompts", "models", "statistics"),
    (
        "errors",
        "version",
        "storage.json_io",
        "storage.atomic_io",
        "storage.paths",
        "server_shared.tolerant_paths",
    ),
]


def layer_of(module: str) -> int:
    """Index of the module's layer, 0 the highest."""
    matches = [
        (len(prefix), depth)
        for depth, prefixes in enumerate(LAYERS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    assert matches, f"{module} stands in no layer; add it to LAYERS where it belongs"
    return max(matches)[1]


@cache
def modules() -> dict[str, Path]:
    found = {}
    for file in PACKAGE.rglob("*.py"):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = file
    return found


def imports_of(file: Path) -> set[str]:
    """Modules of the package that a file imports, at run time or for types."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module == "inferaligner":
            # A name that is no module is one of the public classes, which the package takes from `aligner`.
            found |= {alias.name if alias.name in modules() else "aligner" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("inferaligner."):
            base = node.module.removeprefix("inferaligner.")
            inside = [f"{base}.{alias.name}" for alias in node.names]
            found |= {name for name in inside if name in modules()} or {base}
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix("inferaligner.")
                for alias in node.names
                if alias.name.startswith("inferaligner.")
            }
    return found


@pytest.mark.parametrize("module", sorted(modules()))
def test_imports_run_downward(module: str) -> None:
    here = layer_of(module)
    upward = sorted(name for name in imports_of(modules()[module]) if layer_of(name) < here)
    assert not upward, f"{module} (layer {here}) imports {upward} from above"


def circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one module, by Tarjan's algorithm."""
    numbers: dict[str, int] = {}
    lowest: dict[str, int] = {}
    open_path: list[str] = []
    components: list[list[str]] = []

    def visit(module: str) -> None:
        numbers[module] = lowest[module] = len(numbers)
        open_path.append(module)
        for imported in graph.get(module, set()):
            if imported not in numbers:
                visit(imported)
                lowest[module] = min(lowest[module], lowest[imported])
            elif imported in open_path:
                lowest[module] = min(lowest[module], numbers[imported])
        if lowest[module] == numbers[module]:
            at = open_path.index(module)
            components.append(sorted(open_path[at:]))
            del open_path[at:]

    for module in graph:
        if module not in numbers:
            visit(module)
    return [component for component in components if len(component) > 1]


def test_circles_are_detected() -> None:
    graph = {"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"e"}, "e": {"d"}, "f": {"a"}}
    assert sorted(circles(graph)) == [["a", "b", "c"], ["d", "e"]]
    assert circles({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_no_import_circles() -> None:
    """Imports inside of functions and for types count too: a circle is one wherever it closes."""
    graph = {module: imports_of(file) for module, file in modules().items()}
    assert not circles(graph)


def test_the_layer_table_of_the_docs_is_this_list() -> None:
    """docs/architecture.md names every layer, in this order, with its files."""
    page = (PACKAGE.parents[1] / "docs" / "architecture.md").read_text("utf-8")
    rows = [line.split("|")[2] for line in page.splitlines() if line.startswith("|")][2:]
    files = [re.findall(r"`([^`]+)`", cell) for cell in rows]
    listed = [{file.removesuffix(".py").rstrip("/").replace("/", ".") for file in cell} for cell in files]
    assert listed == [set(layer) for layer in LAYERS]


def test_no_module_has_a_name_that_says_nothing() -> None:
    nameless = {"utils", "helpers", "common", "misc"}
    assert not [name for name in modules() if set(name.split(".")) & nameless]


def test_a_file_is_about_one_thing() -> None:
    long = {
        name: count
        for name, file in modules().items()
        if (count := len(file.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert not long, f"split these files, or say why they are one thing: {long}"


def test_importing_the_package_is_light() -> None:
    heavy = "{'torch', 'transformers', 'peft', 'gguf', 'scipy'}"
    code = f"import sys, inferaligner; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
