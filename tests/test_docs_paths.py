"""Files and folders that the README and docs/ name exist."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NAMED = re.compile(r"`((?:[\w.-]+/)*[\w.-]+\.py|(?:[\w.-]+/)+)`")
PARTS = ("src", "docs", "tests", "reproduction", "benchmarks")


@functools.cache
def project() -> frozenset[str]:
    """Every file and folder of the project: a slash, its path, and a slash behind a folder."""
    entries = [entry for part in PARTS for entry in [ROOT / part, *(ROOT / part).rglob("*")]]
    return frozenset(f"/{entry.relative_to(ROOT)}{'/' if entry.is_dir() else ''}" for entry in entries)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_files_and_folders_exist(page: Path) -> None:
    """A page names a file or a folder by the end of its path: `hooks.py`, `fit/gate/`."""
    named = sorted(set(NAMED.findall(page.read_text("utf-8"))))
    assert not [name for name in named if not any(path.endswith(f"/{name}") for path in project())]


def test_pages_name_files_and_folders() -> None:
    """The pattern matches what pages write, so that the test above cannot pass by matching nothing."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    assert {"cli/", "aligner.py", "storage/paths.py"} <= set(NAMED.findall(text))
