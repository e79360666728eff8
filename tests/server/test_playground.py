"""The playground in a real browser, offline, against a tiny model."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from inferaligner.models.loading import LoadedModel
from inferaligner.server.keys import ApiKeys
from tests.support.running_server import Running, Serve, start
from tests.support.tiny_aligner import CALIBRATION, PROMPTS, eager_monitor, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer
from tests.support.tiny_vision import picture, tiny_vision

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page on which nothing may go wrong, and that reaches nobody but the server."""
    context = browser.new_context(viewport={"width": 1280, "height": 860}, color_scheme="light")
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on(
        "request",
        lambda request: (
            None if request.url.startswith(("http://127.0.0.1", "data:")) else problems.append(request.url)
        ),
    )
    page.problems = problems
    yield page
    context.close()


@pytest.fixture(scope="module")
def open_server() -> Iterator[Running]:
    running = start(settings={"allow_override": True})
    yield running
    running.stop()


def ask(page: Any, text: str) -> None:
    """Sends a prompt and waits for its answers. A tiny model may be done before one could see it begin."""
    turns = page.locator(".turn").count()
    page.fill("#prompt", text)
    page.press("#prompt", "Enter")
    page.wait_for_function("n => document.querySelectorAll('.turn').length > n", arg=turns)
    page.wait_for_selector("#send:not(.hidden)", timeout=30_000)
    page.wait_for_selector("#layers-details:not(.hidden)", timeout=30_000)


def test_the_page_needs_nothing_else() -> None:
    text = files("inferaligner.server").joinpath("playground.html").read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']([^"'#][^"']*)""", text)
    assert all(link.startswith("data:") for link in links), links
    assert "@import" not in text and "innerHTML" not in text


def test_both_answers_side_by_side(page: Any, open_server: Running) -> None:
    page.goto(open_server.url)
    page.wait_for_selector(".try button")
    page.fill("#longest", "8")
    for number, prompt in enumerate(PROMPTS[:3]):
        page.click("#fresh")
        ask(page, prompt)
        texts = page.locator(".answer .text").all_inner_texts()
        assert len(texts) == 2, number
        fine = open_server.chat(prompt).json()
        bare = open_server.chat(prompt, inferaligner={"strength": 0.0}).json()
        expected = [each["choices"][0]["message"]["content"] for each in (fine, bare)]
        assert [text.split() for text in texts] == [text.split() for text in expected]
        report = fine["inferaligner"]
        score = f"{abs(report['score']):.2f}"
        assert score in page.inner_text("#verdict") and score in page.inner_text(".answer .chip")
        assert page.inner_text("#gate-chip") == ("open" if report["open"] else "closed")
        assert score in page.get_attribute("#dial", "aria-label")
        page.click("#layers-details summary")
        assert page.locator("#layers-table tbody tr").count() == 4
        page.click("#layers-details summary")
    assert page.problems == []


def test_a_conversation_and_its_gates(page: Any, open_server: Running) -> None:
    page.goto(open_server.url)
    page.wait_for_selector(".try button")
    page.fill("#longest", "6")
    ask(page, PROMPTS[0])
    first = page.inner_text("#verdict")
    ask(page, PROMPTS[1])
    assert page.locator(".question").all_inner_texts() == PROMPTS[:2]
    chosen = page.locator(".turn").nth(1).locator(".answer.chosen")
    assert chosen.count() == 2
    page.locator(".link").first.click()
    assert chosen.count() == 0 and page.locator(".turn").nth(0).locator(".answer.chosen").count() == 2
    assert page.inner_text("#verdict") == first
    page.keyboard.press("Alt+n")
    assert page.locator(".turn").count() == 0
    assert page.problems == []


def test_the_strength_slider(page: Any, open_server: Running) -> None:
    page.goto(open_server.url)
    page.wait_for_selector("#strength-field:not(.hidden)")
    assert "2.00 (fitted)" in page.inner_text("#strength-shown")
    page.focus("#strength")
    page.keyboard.press("Home")
    assert "off" in page.inner_text("#strength-shown")
    with page.expect_request(lambda request: request.url.endswith("/v1/chat/completions")) as sent:
        page.fill("#prompt", PROMPTS[0])
        page.press("#prompt", "Enter")
    assert sent.value.post_data_json["inferaligner"] == {"strength": 0}


def test_stopping(page: Any, open_server: Running) -> None:
    from tests.support.running_server import slow, until

    page.goto(open_server.url)
    page.wait_for_selector(".try button")
    page.fill("#longest", "200")
    with slow(open_server, 0.05):
        page.fill("#prompt", "Hello")
        page.press("#prompt", "Enter")
        page.wait_for_selector("#stop:not(.hidden)")
        until(lambda: open_server.engine.load.running == 2)
        page.keyboard.press("Escape")
        page.wait_for_selector("#send:not(.hidden)")
        until(lambda: open_server.engine.load.running == 0, 5)
    assert "Stopped" in page.inner_text(".answer .foot")


def test_without_overrides_there_is_one_answer(page: Any, server: Running) -> None:
    page.goto(server.url)
    page.wait_for_selector(".try button")
    assert "--allow-override" in page.inner_text(".empty")
    assert page.is_hidden("#strength-field")
    page.fill("#longest", "4")
    ask(page, PROMPTS[0])
    assert page.locator(".answer").count() == 1
    assert "no monitor" in page.inner_text("#monitor-note")
    assert page.problems == []


def test_the_monitors_view(page: Any, serve: Serve) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    model.generation_config.eos_token_id = None
    aligner = tiny_aligner(model, tokenizer, monitor=eager_monitor())
    running = serve(loaded=LoadedModel(model, tokenizer, "tiny"), aligner=aligner)
    page.goto(running.url)
    page.wait_for_selector(".try button")
    page.fill("#longest", "8")
    for prompt in PROMPTS:
        report = running.chat(prompt).json()["inferaligner"]
        page.click("#fresh")
        ask(page, prompt)
        assert page.locator("#tokens span").count() == 8
        scored = page.locator("#tokens span[title]").all()
        assert len(scored) == 7  # the last token is not read
        chip = page.inner_text("#monitor-chip")
        if report.get("opened_at"):
            assert chip == f"opened at token {report['opened_at']}"
            shown = page.get_attribute(f"#tokens span:nth-child({report['opened_at']})", "title")
            assert "−" not in shown
        assert "opens above 0" in page.get_attribute("#monitor-plot", "aria-label")
    assert page.problems == []


@pytest.mark.parametrize("ordinary", [True, False])
def test_the_prompt_among_held_out_scores(page: Any, serve: Serve, ordinary: bool) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    scores = {"harmful": [1.0, 2.0, 3.0], "harmless twins": [-1.0, 0.5], "harmful, wrapped": [0.0]}
    if ordinary:
        scores["ordinary traffic"] = [-3.0]
    aligner = tiny_aligner(model, tokenizer, calibration={**CALIBRATION, "held_out_scores": scores})
    running = serve(loaded=LoadedModel(model, tokenizer, "tiny"), aligner=aligner)
    page.goto(running.url)
    page.wait_for_selector(".try button")
    page.fill("#longest", "3")
    ask(page, PROMPTS[0])
    told = page.get_attribute("#strip", "aria-label")
    assert f"{1 if ordinary else 2} harmless and 3 harmful prompts" in told and "this prompt is at" in told
    assert page.locator("#strip path").count() == 2
    assert page.problems == []


def test_a_key_is_asked_for(page: Any, serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-mine", encoding="utf-8")
    running = serve(keys=ApiKeys.read(file))
    page.goto(running.url)
    page.wait_for_selector("#key-dialog[open]")
    page.fill("#key", "sk-mine")
    page.keyboard.press("Enter")
    page.wait_for_selector(".try button")
    page.fill("#longest", "3")
    ask(page, "Hello")
    assert page.inner_text(".answer .text")


@pytest.mark.parametrize("size", [(1440, 900), (768, 1024), (390, 844), (320, 568)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_width_in_both_colours(browser: Any, open_server: Running, size: Any, scheme: str) -> None:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page = context.new_page()
    page.goto(open_server.url)
    page.wait_for_selector(".try button")
    if not page.is_visible("#longest"):
        page.click("#more")
    page.fill("#longest", "6")
    ask(page, "word " * 12 + "x" * 120)
    assert page.evaluate("document.documentElement.scrollWidth") <= size[0], "it scrolls sideways"
    assert page.is_visible("#send") and page.is_visible("#prompt")
    ink, ground = page.evaluate(
        """() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]"""
    )
    light = [sum(map(int, re.findall(r"\d+", color)[:3])) for color in (ink, ground)]
    assert (light[0] < light[1]) == (scheme == "light") and abs(light[0] - light[1]) > 300
    context.close()


def test_names_for_whoever_cannot_see_it(page: Any, open_server: Running) -> None:
    page.goto(open_server.url)
    page.wait_for_selector(".try button")
    page.fill("#longest", "3")
    ask(page, PROMPTS[0])
    nameless = page.evaluate(
        """() => [...document.querySelectorAll(`button, input, textarea, svg[role=img], section, aside,
        main`)]
            .filter(e => e.offsetParent !== null || e.tagName === "svg")
            .filter(e => !(e.getAttribute("aria-label") || e.getAttribute("aria-labelledby") ||
            e.textContent.trim()
                || (e.labels && e.labels.length)))
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    # From the prompt onward everything can be reached with the keyboard.
    reached = set()
    page.focus("#prompt")
    for _ in range(12):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"send", "longest", "temperature", "strength"} <= reached


def test_a_dropped_image_goes_with_the_next_turn(page: Any) -> None:
    loaded = tiny_vision("llava")
    server = start(loaded=loaded, aligner=tiny_aligner(loaded.model, loaded.reader))
    try:
        page.goto(server.url)
        page.locator("#attach").wait_for(state="visible")
        page.locator("#file").set_input_files(
            files=[{"name": "a.png", "mimeType": "image/png", "buffer": picture(1).data}]
        )
        page.locator("#pictures img").wait_for(state="visible")
        sent: list[Any] = []
        page.on("request", lambda request: sent.append(request) if "completions" in request.url else None)
        page.fill("#prompt", "Hi")
        page.click("#send")
        page.locator(".question img").wait_for(state="visible")
        page.locator("#gate-chip.alert, #gate-chip.calm").wait_for()
        (request,) = sent
        (message,) = request.post_data_json["messages"]
        assert [part["type"] for part in message["content"]] == ["image_url", "text"]
        assert page.locator("#pictures img").count() == 0
        assert page.problems == []
    finally:
        server.stop()


def test_a_model_that_reads_text_alone_offers_no_images(page: Any, server: Running) -> None:
    page.goto(server.url)
    page.locator("#gate-chip").wait_for()
    assert page.locator("#attach").is_hidden()
