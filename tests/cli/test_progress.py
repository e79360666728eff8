from __future__ import annotations

import io

import pytest
from rich.console import Console

from inferaligner.cli import progress
from inferaligner.cli.progress import RichStages


def test_a_log_gets_a_line_for_a_stage_that_took_time(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_WORTH_A_LINE_SECONDS", 0.0)
    with RichStages().stage("reading", 3) as advance:
        advance(1)
        advance(2)
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("reading: 3 done in")


def test_a_short_stage_is_no_news(capsys: pytest.CaptureFixture[str]) -> None:
    with RichStages().stage("reading", 3):
        pass
    RichStages().note("by the way")
    assert capsys.readouterr().err == "by the way\n"


@pytest.mark.parametrize("total", [3, None])
def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch, total: int | None) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "messages", lambda: Console(file=screen, force_terminal=True, width=120))
    with RichStages().stage("reading", total) as advance:
        advance(3)
    assert "reading" in screen.getvalue() and "3/3" in screen.getvalue()


def test_a_failing_stage_fails_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(progress, "messages", lambda: Console(file=screen, force_terminal=True, width=120))
    with pytest.raises(ZeroDivisionError), RichStages().stage("reading", 3):
        raise ZeroDivisionError
