"""Files are read and written as UTF-8 on every machine: no call leaves the encoding to the locale."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(
    file for folder in ("src", "reproduction", "benchmarks") for file in (ROOT / folder).rglob("*.py")
)
TEXT_MODE = re.compile(r"[rwax]?\+?t?\+?")


def _names_an_encoding(call: ast.Call, place: int) -> bool:
    return len(call.args) > place or "encoding" in {keyword.arg for keyword in call.keywords}


def _mode(call: ast.Call, place: int) -> object:
    """The mode of an `open`: "r" where none is given, None where it is no constant."""
    given = [*call.args[place : place + 1], *(word.value for word in call.keywords if word.arg == "mode")]
    if not given:
        return "r"
    return given[0].value if isinstance(given[0], ast.Constant) else None


def left_to_the_locale(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if any(
        word.arg in ("text", "universal_newlines") and getattr(word.value, "value", None) is True
        for word in call.keywords
    ):
        return not _names_an_encoding(call, 99)
    if name == "read_text":
        return not _names_an_encoding(call, 0)
    if name == "write_text":
        return not _names_an_encoding(call, 1)
    if name == "open" and isinstance(call.func, ast.Name):
        mode = _mode(call, 1)
        return isinstance(mode, str) and "b" not in mode and not _names_an_encoding(call, 3)
    if name == "open" and ast.unparse(call.func) not in ("answers.open", "os.open"):
        mode = _mode(call, 0)
        in_text = isinstance(mode, str) and TEXT_MODE.fullmatch(mode) is not None
        return in_text and not _names_an_encoding(call, 2)
    return False


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("file.read_text()", True), ("file.read_text('utf-8')", False),
        ("file.read_text(encoding='utf-8')", False),
        ("file.write_text(a)", True), ("file.write_text(a, 'utf-8')", False), ("open(a)", True),
        ("open(a, 'rb')", False), ("open(a, 'w', encoding='utf-8')", False), ("file.open()", True),
        ("file.open('a')", True), ("file.open('wb')", False), ("file.open(encoding='utf-8')", False),
        ("run(a, text=True)", True), ("run(a, text=True, encoding='utf-8')", False), ("run(a)", False),
        ("Image.open(file)", False),
    ],
)  # fmt: skip
def test_the_check_itself(code: str, found: bool) -> None:
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert left_to_the_locale(call) is found


def test_every_file_is_opened_with_an_encoding() -> None:
    found = [
        f"{file.relative_to(ROOT)}:{node.lineno}: {ast.unparse(node)[:80]}"
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and left_to_the_locale(node)
    ]
    assert not found, "\n".join(found)
