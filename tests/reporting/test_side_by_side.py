"""The report page: complete, escaped, self-contained, and without what a model said to harmful prompts."""

from __future__ import annotations

import html
import re
from html.parser import HTMLParser

import pytest

from inferaligner.evaluation.side_by_side import records
from inferaligner.reporting.examples import examples, shown
from inferaligner.reporting.html import unbroken
from inferaligner.reporting.side_by_side import report
from tests.support.synthetic_results import reply, row, rows, run

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


@pytest.fixture(scope="module")
def page() -> str:
    return report(run())


def test_the_page_is_well_formed(page: str) -> None:
    outline = Outline(page)
    assert len(outline.ids) == len(set(outline.ids))
    names = [tag for tag, _ in outline.tags]
    assert names.count("h1") == 1
    assert names.count("svg") == 7
    assert {"lang": "en"} in [attributes for tag, attributes in outline.tags if tag == "html"]
    for tag, attributes in outline.tags:
        if tag == "section":
            assert attributes["aria-labelledby"] in outline.ids
    assert names.count("caption") == names.count("table")


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    allowed = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) <= allowed
    assert not re.search(r"<(script|link|img|iframe)\b|@import|\bsrc=", page)
    assert "default-src 'none'" in page


def test_what_was_found_is_told(page: str) -> None:
    text = html.unescape(page)
    assert "Harmful requests declined: 80\u00a0% instead of 0\u00a0%" in text
    assert "2 of all 14 harmful requests were not declined: 2 did not open the gate" in text
    assert "Against human labels: accuracy 92.7 %." in text
    assert "in clear" in text
    assert "layers 1–2, 2 × the SSV, from the prompt's last token on" in text


def test_answers_to_harmful_prompts_are_withheld() -> None:
    found = rows(bare=f"Of course: {CANARY} and more.")
    assert CANARY not in report(run(found))
    told = [answer.told for example in examples(found) for answer in example.answers]
    assert "(answer withheld, 5 words)" in told


def test_broken_answers_to_harmful_prompts_are_withheld_too() -> None:
    broken = reply(f"{CANARY} {CANARY}", "gibberish")
    found = [row("Do harm", harmful=True, bare=broken, ours=broken), *rows()]
    assert CANARY not in report(run(found))


def test_a_judges_reason_and_the_records_stay_out_of_the_page() -> None:
    found = rows(bare=f"Of course: {CANARY}")
    assert any(CANARY in record["response"] for record in records(found))
    assert CANARY not in report(run(found))


def test_refusals_and_harmless_answers_are_shown(page: str) -> None:
    text = html.unescape(page)
    assert "I'm sorry, but I can't help with that." in text
    assert "A harmless answer 0." in text


def test_only_the_beginning_of_a_refusal_of_a_harmful_prompt_is_shown() -> None:
    turned = reply("I'm sorry, I can't. " + "word " * 60 + CANARY, "refusal")
    assert shown(turned, "bare", harmful=True).text.endswith(" …")
    assert CANARY not in shown(turned, "bare", harmful=True).told
    assert len(shown(turned, "bare", harmful=False).text) > len(shown(turned, "bare", harmful=True).text)


def test_prompts_and_answers_are_escaped() -> None:
    answer = reply("<img src=x onerror=alert(1)> & more")
    found = [
        row(
            "<script>alert('&')</script>",
            harmful=False,
            bare=answer,
            ours=answer,
            is_open=False,
            group="medical",
        ),
        *rows(),
    ]
    page = report(run(found))
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;" in page


def test_identical_answers_are_shown_once(page: str) -> None:
    assert html.unescape(page).count("A harmless answer 0.") == 1
    assert "both, token by token the same" in page


def test_a_fit_without_a_search_has_no_section_on_it() -> None:
    page = report(run(search=False))
    Outline(page)
    assert "How layers and strength were chosen" not in page
    assert page.count("<svg") == 5


def test_unbroken_keeps_numbers_with_their_sign() -> None:
    assert unbroken("3 % of 5 %") == "3\u00a0% of 5\u00a0%"
