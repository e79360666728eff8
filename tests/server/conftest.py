"""Servers around tiny models, stopped after the test or after its module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

from tests.support.running_server import Running, Serve, start


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that are stopped after the test."""
    running: list[Running] = []

    def make(**options: Any) -> Running:
        running.append(start(**options))
        return running[-1]

    yield make
    for each in running:
        each.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One for a whole module. Do not change it."""
    running = start()
    yield running
    running.stop()


@pytest.fixture
def key_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a key file."""

    def write(text: str) -> Path:
        file = tmp_path / "keys"
        file.write_text(text, encoding="utf-8")
        return file

    return write
