"""The tests mirror the source, and share code through tests/support alone."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
FILES = sorted(TESTS.rglob("*.py"))
FOLDERS = sorted(folder for folder in TESTS.rglob("*") if (folder / "__init__.py").is_file())
EXTRAS = ("trl", "lm_eval", "torchao", "bitsandbytes", "sklearn")
"""Packages that `make test-extras` installs and `make test` does not."""


def imports_of_tests(file: Path) -> set[str]:
    """Modules below `tests` that a file imports, wherever in the file the import stands."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.ImportFrom) and node.level:
            modules.add("tests.relative")
        elif isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
    return {name for name in modules if name.startswith("tests.")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(TESTS)))
def test_shared_code_comes_from_support(file: Path) -> None:
    elsewhere = {name for name in imports_of_tests(file) if not re.match(r"tests\.support\b", name)}
    assert not elsewhere, f"move what is imported from {sorted(elsewhere)} to tests/support"


def test_nobody_else_imports_tests() -> None:
    folders = (ROOT / "src", ROOT / "reproduction", ROOT / "benchmarks")
    files = [file for folder in folders for file in folder.rglob("*.py")]
    # `make gpu` runs the golden checks on machines without pytest.
    allowed = re.compile(r"tests\.support\b")
    wrong = {
        (str(file), name) for file in files for name in imports_of_tests(file) if not allowed.match(name)
    }
    assert not wrong


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: str(folder.relative_to(TESTS)))
def test_every_folder_mirrors_one_of_the_source(folder: Path) -> None:
    path = folder.relative_to(TESTS)
    if path != Path("support"):
        mirrored = [ROOT / "src" / "inferaligner" / path, ROOT / path]
        assert any(source.is_dir() for source in mirrored), f"there is no {' nor '.join(map(str, mirrored))}"


def test_support_holds_no_tests() -> None:
    assert not [file.name for file in (TESTS / "support").glob("test_*.py")]


def _lines(text: str, variable: str) -> list[str]:
    value = re.search(rf"^{variable} := ((?:.*\\\n)*.*)", text, re.MULTILINE)
    assert value is not None, f"the Makefile has no {variable}"
    return value[1].replace("\\\n", " ").split()


def test_tests_that_need_more_packages_run_with_them() -> None:
    """A test that skips without such a package is marked `extras`, and `make test-extras` runs its file."""
    asked = re.compile(rf"(?:importorskip|find_spec)\(\"({'|'.join(EXTRAS)})\b|: \"({'|'.join(EXTRAS)})\"}}")
    needing = [
        file for file in FILES if file.name.startswith("test_") and asked.search(file.read_text("utf-8"))
    ]
    needing = [file for file in needing if file != Path(__file__)]
    assert len(needing) >= 6
    unmarked = [file.name for file in needing if "pytest.mark.extras" not in file.read_text("utf-8")]
    assert not unmarked
    listed = _lines((ROOT / "Makefile").read_text(encoding="utf-8"), "EXTRAS_TESTS")
    assert sorted(listed) == sorted(str(file.relative_to(ROOT)) for file in needing)
