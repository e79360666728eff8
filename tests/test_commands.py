"""Every command that a reader may copy from the project is parsed by the program that it names.

Commands are collected from the pages (code blocks, indented lines, inline code), from docstrings, comments
and messages of the Python files, and from the Makefile and CI. Nothing is run but parsers: `inferaligner` by
its own click commands, `python -m MODULE` by the module's argparse parser, `make` by a dry run whose recipes
are checked in turn. A command in running text may leave out what is required; its options have to exist.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import inspect
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer.main
from reproduction.__main__ import app as reproduction_app
from typer import Exit

from inferaligner.cli.main import app

ROOT = Path(__file__).parents[1]
MAKEFILE = ROOT / "Makefile"
PAGES = sorted({ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "benchmarks").rglob("*.md"),
                *(ROOT / "reproduction").rglob("*.md")})  # fmt: skip
SOURCES = sorted(
    file for folder in ("src", "reproduction", "benchmarks") for file in (ROOT / folder).rglob("*.py")
)
LISTS = [ROOT / "pyproject.toml", ROOT / "constraints.txt", *(ROOT / "benchmarks").glob("*.txt")]
NAMES = {command.name for command in app.registered_commands}
FOREIGN = {"inferaligner.evaluation.lm_eval_model": "lm-eval", "inferaligner.vllm.launch": "vLLM"}
"""Modules whose options are another package's, which may be missing here: only the module is checked."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"`([^`]+)`")
_START = re.compile(
    r"(?:[A-Z][A-Z0-9_]*=\S+ )*(?:inferaligner|python3?|make|accelerate launch|pip install)(?= |$)"
)
_IN_TEXT = re.compile(r"\binferaligner [a-z]+(?: +(?:--?[a-z][\w-]*|[A-Z][\w.:]*|[\w./=-]*[./=][\w./=-]*))+")


@dataclass(frozen=True)
class Command:
    """A command where it stands; `whole` where it is meant to be copied as it is."""

    text: str
    file: str
    whole: bool

    def words(self) -> list[str]:
        """Without environment, comment, brackets around what is optional, and ellipses."""
        text = re.sub(r"[\[\]|]", " ", self.text.replace("…", " ").replace("...", " "))
        words = shlex.split(text, comments=True)
        while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
            words = words[1:]
        return words


def commands_of_lines(text: str, file: str, *, whole: bool) -> Iterator[Command]:
    for line in re.split(r"\n|\s{2,}or\s{2,}", re.sub(r"\\\n\s*", " ", text)):
        line = line.strip().removeprefix("$ ")
        if _START.match(line):
            elided = "…" in line or "..." in line or " | " in line
            yield Command(line, file, whole and not elided)


def commands_inline(text: str, file: str) -> Iterator[Command]:
    for span in _INLINE.findall(text):
        yield from commands_of_lines(" ".join(span.split()), file, whole=False)


def commands_of_page(page: Path) -> Iterator[Command]:
    text, name = page.read_text(encoding="utf-8"), str(page.relative_to(ROOT))
    for language, block in _FENCE.findall(text):
        if language in ("", "bash", "sh", "console"):
            yield from commands_of_lines(block, name, whole=True)
    text = _FENCE.sub("", text)
    indented = "".join(line for line in text.splitlines(keepends=True) if line.startswith("    "))
    yield from commands_of_lines(indented, name, whole=True)
    yield from commands_inline(text, name)


def commands_of_module(file: Path) -> Iterator[Command]:
    source, name = file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            docstring = ast.get_docstring(node) or ""
            indented = "\n".join(line for line in docstring.splitlines() if line.startswith("    "))
            yield from commands_of_lines(indented, name, whole=True)
        if isinstance(node, ast.JoinedStr):
            text = "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value
        else:
            continue
        yield from commands_inline(text, name)
        for found in _IN_TEXT.findall(_INLINE.sub("", text)):
            # "inferaligner reads X" is a sentence, "inferaligner chat X --aligner Y" is a command.
            if found.split()[1] in NAMES or " -" in found:
                yield Command(found, name, whole=False)
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield from commands_inline(token.string, name)


def commands_of_list(file: Path) -> Iterator[Command]:
    text, name = file.read_text(encoding="utf-8"), str(file.relative_to(ROOT))
    yield from commands_inline(text, name)
    lines = "\n".join(line.lstrip("# ") for line in text.splitlines() if line.lstrip().startswith("#"))
    yield from commands_of_lines(lines, name, whole=False)


def targets() -> list[str]:
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE.read_text(encoding="utf-8"), re.MULTILINE)
    assert phony is not None
    return phony[1].split()


def dry_run(*arguments: str) -> subprocess.CompletedProcess[str]:
    make = shutil.which("make")
    assert make is not None, "make is needed to check the Makefile"
    # As if these environments stood already; how the others are made is checked as well.
    ready = ["-o", ".venv/.ready", "-o", ".venv-vllm/.ready"]
    return subprocess.run(
        [make, "-n", *ready, *arguments], cwd=ROOT, capture_output=True, encoding="utf-8", timeout=60
    )


def collected() -> list[Command]:
    found = [command for page in PAGES for command in commands_of_page(page)]
    found += [command for file in SOURCES for command in commands_of_module(file)]
    found += [command for file in LISTS for command in commands_of_list(file)]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("step make ", "make ")
    found += commands_of_lines(ci, ".ci/run", whole=True)
    found += commands_inline(MAKEFILE.read_text(encoding="utf-8"), "Makefile")
    unique = {
        (command.words()[0], command.text, command.file): command for command in found if command.words()
    }
    return list(unique.values())


COMMANDS = collected()


def of(program: str) -> list[object]:
    found = [command for command in COMMANDS if _program(command) == program]
    return [pytest.param(command, id=f"{command.file}: {command.text[:70]}") for command in found]


def _program(command: Command) -> str:
    words = command.words()
    return "python -m" if "-m" in words and words[0] in ("python", "python3", "accelerate") else words[0]


def test_the_collection_is_not_empty() -> None:
    """The kinds of places are all seen; were one lost, its commands would pass unread."""
    known = {
        ("README.md", "make demo"),
        ("README.md", "inferaligner fit ./my-medical-llama --aligned meta-llama/Llama-2-7b-chat-hf "
                      "--benign my_traffic.jsonl -o my-aligner"),
        ("benchmarks/overhead.py", "python -m benchmarks.overhead --model builtin:smollm2-135m --batch 8 "
                                   "--repeats 30"),
        ("src/inferaligner/cli/model_options.py", "inferaligner doctor TARGET --aligner DIR --rescore"),
        ("pyproject.toml", "python -m reproduction"),
        (".ci/run", "make lint"),
    }  # fmt: skip
    assert not known - {(command.file, command.text) for command in COMMANDS}
    assert len(COMMANDS) > 120


def parse_click(group: Any, words: list[str], *, whole: bool) -> None:
    """Parses `COMMAND ARGUMENTS…` of a typer application without running it; in part, only its options."""
    assert words[0] in group.commands, f"there is no command {words[0]!r}: {', '.join(group.commands)}"
    command = group.commands[words[0]]
    own = words[1 : words.index("--")] if "--" in words else words[1:]
    if {"--help", "-h"} & set(own):
        return
    if whole:
        try:
            command.make_context(words[0], words[1:]).close()
        except Exit:  # an option such as --list, which ends the command
            return
        except Exception as error:
            shown = error.format_message() if hasattr(error, "format_message") else str(error)
            pytest.fail(f"{' '.join(words)}: {type(error).__name__}: {shown}")
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    unknown = {word.partition("=")[0] for word in own if re.match(r"--?[a-z]", word)} - known
    assert not unknown, f"{command.name} has no {', '.join(sorted(unknown))}"


@pytest.mark.parametrize("command", of("inferaligner"))
def test_inferaligner(command: Command) -> None:
    words = command.words()[1:]
    if not words or words[0] == "X":
        return  # the name of the program alone, or one that a message fills in
    parse_click(typer.main.get_command(app), words, whole=command.whole)


@pytest.mark.parametrize(
    "module", ["reproduction.operating_point", "reproduction", "benchmarks.vllm_operations"]
)
def test_scripts_run_on_terminals_that_are_not_utf8(module: str) -> None:
    environment = os.environ | {"PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    arguments = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.decode("ascii").lower()


class _ParsedError(Exception):
    """The module's parser has taken the arguments."""


@pytest.mark.parametrize("command", of("python -m"))
def test_python_modules(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command.words()
    module, *arguments = words[words.index("-m") + 1 :]
    name = f"{module}.__main__" if (ROOT / module.replace(".", "/")).is_dir() else module
    assert importlib.util.find_spec(name) is not None, f"there is no module {module}"
    if not module.startswith(("reproduction", "benchmarks", "inferaligner")):
        return
    if module in FOREIGN:
        file = importlib.util.find_spec(name).origin  # type: ignore[union-attr]
        assert 'if __name__ == "__main__":' in Path(str(file)).read_text(encoding="utf-8")
        return
    if module == "reproduction":
        if arguments:
            parse_click(typer.main.get_command(reproduction_app), arguments, whole=command.whole)
        return
    main = importlib.import_module(name).main
    if inspect.signature(main).parameters:  # it takes the names of files, and no options
        assert main(arguments) == 2
        assert "Expected" not in capsys.readouterr().err
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: argparse.ArgumentParser, *given: object) -> None:
        parse(parser, *given)  # type: ignore[call-overload]
        raise _ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises((_ParsedError, SystemExit)) as ended:
        main()
    error = capsys.readouterr().err
    if ended.type is SystemExit and (command.whole or "arguments are required" not in error):
        pytest.fail(error)


@pytest.mark.parametrize("command", [*of("python"), *of("python3")])
def test_scripts_are_run_as_modules(command: Command) -> None:
    scripts = [word for word in command.words() if word.endswith(".py")]
    assert not scripts, "a file of a package cannot import its neighbours when it is run by its path"


@pytest.mark.parametrize("command", of("make"))
def test_make(command: Command) -> None:
    words = [word.rstrip(".,") for word in command.words()[1:]]
    wanted = [word for word in words if not word.startswith("-") and "=" not in word and "/" not in word]
    assert not set(wanted) - set(targets()), f"the Makefile has no target {wanted}"


@pytest.mark.parametrize("command", of("pip"))
def test_extras_that_are_installed_exist(command: Command) -> None:
    table = (
        (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
    )
    known = set(re.findall(r"^(\w+) = \[", table.partition("\n[")[0], re.MULTILINE))
    named = re.findall(r"(?:inferaligner|[\"' ]\.)\[([\w,]+)\]", command.text)
    assert not {extra for extras in named for extra in extras.split(",")} - known


@pytest.mark.parametrize("target", targets())
def test_every_target_of_the_makefile(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its recipe names programs, modules and folders that exist."""
    done = dry_run(target)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.replace("\\\n", " ").splitlines():
        words = shlex.split(re.sub(r"\.venv(-\w+)?/bin/", "", line))
        while words and re.fullmatch(r"[A-Z][A-Z0-9_]*=.*", words[0]):
            words = words[1:]
        if words[:1] == ["inferaligner"]:
            parse_click(typer.main.get_command(app), words[1:], whole=True)
        elif words[:2] in (["python", "-m"], ["python3", "-m"]):
            assert importlib.util.find_spec(words[2]) is not None, line
        elif words[:2] in (["python", "-c"], ["python3", "-c"]):
            ast.parse(words[2])
        elif words[:1] in (["python"], ["python3"]):
            script = ROOT / words[1]
            assert script.is_file(), line
            assert not (script.parent / "__init__.py").exists(), f"{line}: run it as a module"
        elif words[:1] == ["ruff"]:
            assert not [word for word in words[2:] if word[0] != "-" and not (ROOT / word).exists()], line


@pytest.mark.slow
def test_make_benchmark_runs(tmp_path: Path) -> None:
    """Both scripts, on a tiny model, by the Makefile's own recipe."""
    done = subprocess.run(
        [
            "make", "-o", ".venv/.ready", "benchmark", f"BIN={Path(sys.executable).parent}",
            "BENCHMARK=--model random-tiny --device cpu --repeats 2 --warmup 0",
        ],
        cwd=ROOT, capture_output=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("gate closed", "gate open", "bare forward passes"):
        assert words in done.stdout, done.stdout
