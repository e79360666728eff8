"""Defaults that help texts and docstrings state are the code's.

Covered: every number, and the text of a refusal, that follows "by default" in the help of any command, in
the docstrings of `Aligner`'s public methods and of the public functions of `inferaligner.fit`; and the
flags for the fields of `FitOptions` or `ModelOptions`, whose default the help prints. A statement
without a number ("by default the better one") is not parsed. A new statement with a number fails here until
it is listed below, beside the code that it is about.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest
import typer.main

import inferaligner.fit
from inferaligner.aligner import Aligner
from inferaligner.cli.fit_flags import FLAGS
from inferaligner.cli.main import app
from inferaligner.cli.model_options import ModelOptions
from inferaligner.fit.options import CONFIDENCE, MONITOR_TOKENS, OWN_LIMIT, SHIPPED_LIMIT, FitOptions
from inferaligner.steering.gate_choices import REFUSAL

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
STATED: dict[str, list[object]] = {
    "fit max_false_open": [OWN_LIMIT, SHIPPED_LIMIT],
    "fit monitor_tokens": [MONITOR_TOKENS],
    "calibrate max_false_open": [OWN_LIMIT],
    "calibrate confidence": [CONFIDENCE],
    "generate refusal": [REFUSAL],
    "chat refusal": [REFUSAL],
    "serve refusal": [REFUSAL],
    "Aligner.fit": [OWN_LIMIT, SHIPPED_LIMIT, MONITOR_TOKENS],
    "Aligner.apply": [REFUSAL],
}
"""The defaults that a text states, in its order. A text that is not here must state none."""

_CLAUSE = re.compile(r"by default:? (.*?)(?=by default|;|\)|\. [A-Z]|\w: |$)")
_BEFORE = re.compile(r"(\d+(?:\.\d+)?) by default")
_NUMBER = re.compile(r"(?<![\w.-])\d+(?:\.\d+)?(?![\w-])")


def stated(text: str) -> list[object]:
    """Numbers and refusals that a text gives as defaults."""
    text, values = " ".join(text.split()), list[object]()
    for clause in _CLAUSE.findall(text):
        # The refusal has a full stop in it, and stands with or without quotes.
        if REFUSAL.rstrip(".") in clause:
            values.append(REFUSAL)
        else:
            values += map(float, _NUMBER.findall(clause))
    return [*map(float, _BEFORE.findall(text)), *values]


def texts() -> Iterator[tuple[str, str]]:
    for name, command in COMMANDS.items():
        for parameter in command.params:
            yield f"{name} {parameter.name}", getattr(parameter, "help", None) or ""
    for name, method in inspect.getmembers(Aligner, inspect.isroutine):
        if not name.startswith("_"):
            yield f"Aligner.{name}", inspect.getdoc(method) or ""
    for module in pkgutil.walk_packages(inferaligner.fit.__path__, "inferaligner.fit."):
        for name, function in inspect.getmembers(importlib.import_module(module.name), inspect.isfunction):
            if not name.startswith("_") and function.__module__ == module.name:
                yield f"{module.name}.{name}", inspect.getdoc(function) or ""


TEXTS = dict(texts())


@pytest.mark.parametrize("place", sorted(name for name, text in TEXTS.items() if stated(text)))
def test_stated_defaults_are_those_of_the_code(place: str) -> None:
    assert stated(TEXTS[place]) == STATED.get(place, []), TEXTS[place]


@pytest.mark.parametrize("place", ["fit max_false_open", "fit monitor_tokens", "Aligner.fit"])
def test_limits_are_stated(place: str) -> None:
    assert stated(TEXTS[place])


def test_statements_are_recognised() -> None:
    assert stated("At most that (by default 0.02); of others more (by default 0.08).") == [0.02, 0.08]
    assert stated("by default the aligner's own, or 0.95.") == [0.95]
    assert stated("64 by default") == [64]
    assert stated("by default the better one; 3 of them") == []


@pytest.mark.parametrize("name", list(FLAGS))
def test_a_flag_of_fit_has_the_default_of_its_field(name: str) -> None:
    [parameter] = [each for each in COMMANDS["fit"].params if each.name == name]
    [field] = [each for each in fields(FitOptions) if each.name == name]
    # None stands for "not given": then the field's own default counts.
    assert parameter.default is None or parameter.default == field.default
    if FLAGS[name].shows_default:
        assert parameter.default == field.default and parameter.show_default


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_flags_of_loading_have_the_defaults_of_the_loader(command: str) -> None:
    expected = {each.name: each.default for each in fields(ModelOptions)}
    for parameter in COMMANDS[command].params:
        if parameter.name in expected:
            assert parameter.default == expected[parameter.name], parameter.name
