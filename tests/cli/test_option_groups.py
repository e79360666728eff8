"""A command receives a group of options as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import typer
from typer.testing import CliRunner

from inferaligner.cli.option_groups import REQUIRED, OptionGroup, expand_groups, flag, group_of, option


@dataclass(frozen=True)
class Loading:
    panel: ClassVar = "How to load"

    name: str = flag(REQUIRED, metavar="NAME", help="Which one.")
    dtype: str = flag("auto", help="The precision.")
    trust: bool = flag(False, "--trust", help="Run its code.")


PAIR = OptionGroup([option(name, int, typer.Option(), 1) for name in ("a", "b")], dict)


def result_of(command: Any, *arguments: str) -> Any:
    app = typer.Typer()
    app.command()(expand_groups(command))
    return CliRunner(env={"COLUMNS": "100"}).invoke(app, list(arguments))


def outcome(*, target: str, model: Loading, last: int = 3) -> None:
    """Print it."""
    print(target, model, last)


def test_the_command_gets_one_value_with_the_defaults_of_the_fields() -> None:
    result = result_of(outcome, "--name", "a", "t")
    assert result.output == f"t {Loading('a')} 3\n"
    result = result_of(outcome, "--name", "a", "t", "--dtype", "float32", "--trust", "--last", "4")
    assert result.output == f"t {Loading('a', 'float32', True)} 4\n"


def test_a_field_without_a_default_is_required() -> None:
    result = result_of(outcome, "t")
    assert result.exit_code == 2 and "--name" in result.stderr


def test_the_help_shows_the_options_in_the_panel_of_the_group() -> None:
    shown = result_of(outcome, "--help").output
    assert "Print it." in shown
    panels = {panel.splitlines()[0].strip("─ ╮"): panel for panel in shown.split("╭─")[1:]}
    assert all(name in panels["How to load"] for name in ("--name", "--dtype", "--trust"))
    assert "target" in panels["Arguments"] and "--last" in panels["Options"]


def test_a_command_may_have_some_options_of_a_group_alone() -> None:
    def part(*, model: Annotated[Loading, group_of(Loading, only=("name", "dtype"))]) -> None:
        print(model)

    assert result_of(part, "--name", "a", "--dtype", "x").output == f"{Loading('a', 'x')}\n"
    assert result_of(part, "--name", "a", "--trust").exit_code == 2


def test_options_that_are_no_fields_are_made_into_a_value_by_a_function() -> None:
    def both(*, numbers: Annotated[dict[str, int], PAIR]) -> None:
        print(numbers)

    assert result_of(both, "--b", "5").output == "{'a': 1, 'b': 5}\n"
