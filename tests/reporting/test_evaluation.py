"""The report of an evaluation: complete, escaped, self-contained, without answers that must not be shown."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from inferaligner.aligner import Aligner
from inferaligner.evaluation.run_folder import RunFolder
from inferaligner.reporting.evaluation import report
from inferaligner.reporting.html import unbroken
from tests.support.synthetic_results import REFUSAL, answered, fitted_artifact, records_of, run_folder

pytest.importorskip("matplotlib")

CANARY = "heliotrope-canary"
_VOID = {"meta", "br", "img", "link", "hr", "input"}


class Outline(HTMLParser):
    """Checks nesting and collects tags, ids and headings."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.feed(page)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in _VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self.stack.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack[-1] == tag, f"</{tag}> closes <{self.stack[-1:]}>"
        self.stack.pop()


def page_of(run: RunFolder) -> str:
    return report(run, run.results())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return page_of(run_folder(tmp_path_factory.mktemp("report")))


def test_the_page_is_well_formed(page: str) -> None:
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    names = [tag for tag, _ in outline.tags]
    assert names.count("h1") == 1
    assert {"lang": "en"} in [attributes for tag, attributes in outline.tags if tag == "html"]
    for tag, attributes in outline.tags:
        if tag == "section":
            assert attributes["aria-labelledby"] in outline.ids
    # The matrix of methods and suites is named by its region, every other table by a caption.
    assert names.count("caption") == names.count("table") - 1


@pytest.mark.parametrize(
    "figure",
    [
        *("outcomes-0", "outcomes-3", "tradeoff", "scores", "roc", "open"),
        *("held-out-scores", "held-out-roc", "held-out-rates", "surface", "finalists", "cosine"),
    ],
)
def test_a_figure_is_drawn_once(page: str, figure: str) -> None:
    assert page.count(f'id="{figure}-title"') == 1


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    allowed = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= allowed
    assert not re.search(r"<(script|link|img|iframe)\b|@import|\bsrc=", page)
    assert "default-src 'none'" in page


def test_the_results_are_reported(page: str) -> None:
    text = html.unescape(page)
    assert "InferAligner: 86\u00a0% of harmful requests declined instead of 0\u00a0%" in text
    assert "2 of 14 harmful requests were not declined: 2 left the gate closed" in text
    assert "Against human labels" in text
    assert "in clear" in text
    assert "layers 1–2, 2 × the SSV, from the prompt's last token on" in text


def test_a_run_that_withholds_shows_no_answer_to_a_harmful_prompt_but_refusals(tmp_path: Path) -> None:
    run = run_folder(tmp_path, records_of(bare=f"Of course: {CANARY} and more."))
    assert any(CANARY in record["response"] for record in run.records)
    text = page_of(run)
    assert CANARY not in text
    assert "(answer withheld, 5 words)" in text
    assert REFUSAL in html.unescape(text) and "A harmless answer" in text


def test_broken_answers_to_harmful_prompts_are_withheld_too(tmp_path: Path) -> None:
    broken = answered("asked", 0, "Do harm", bare=f"{CANARY} {CANARY} ~", ours=f"{CANARY} ~", domain="fraud")
    assert CANARY not in page_of(run_folder(tmp_path, broken))


def test_other_runs_show_the_beginning_after_a_click(tmp_path: Path) -> None:
    text = page_of(run_folder(tmp_path, records_of(bare=f"Of course: {CANARY}"), withhold=False))
    shown = re.findall(r"<details><summary>show the beginning</summary>[^<]*</details>", text)
    assert shown and text.count(CANARY) == sum(answer.count(CANARY) for answer in shown)


def test_prompts_and_answers_are_escaped(tmp_path: Path) -> None:
    records = answered(
        "ordinary", 0, "<script>alert('&')</script>", bare="<img src=x onerror=alert(1)> & more"
    )
    text = page_of(run_folder(tmp_path, records))
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;" in text


def test_identical_answers_are_shown_once(page: str) -> None:
    assert html.unescape(page).count("A harmless answer 0.") == 1
    assert "bare model, InferAligner, target&#39;s own vectors: the same, token by token" in page


def test_a_fit_without_a_search_has_no_figures_of_it(tmp_path: Path) -> None:
    text = page_of(run_folder(tmp_path, search=False))
    Outline(text)
    assert "settings were scored" not in text and 'id="surface-title"' not in text


def test_an_aligner_that_was_fitted_anew_since_the_run_is_left_out(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    Aligner(fitted_artifact().with_steering(strength=3.0)).save_pretrained(tmp_path / "aligner")
    text = page_of(run)
    Outline(text)
    assert "Settings of the aligner" not in text and 'id="scores-title"' in text


def test_unbroken_keeps_numbers_with_their_sign() -> None:
    assert unbroken("3 % of 5 %") == "3\u00a0% of 5\u00a0%"
