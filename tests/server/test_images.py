"""Images through the server: the same answers and scores as in the library, and nothing fetched unasked."""

from __future__ import annotations

import base64
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from inferaligner.errors import InferAlignerError
from inferaligner.models.generation import generate_answers
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.images import ImagePrompt, Picture
from inferaligner.server.engine import image_input
from inferaligner.server.engine.image_input import MOST_IMAGES, ImageInput
from inferaligner.server.errors import ApiError
from tests.support.running_server import Running, start
from tests.support.tiny_aligner import PROMPTS, tiny_aligner
from tests.support.tiny_vision import VISION_FAMILIES, picture, tiny_vision


def url_of(shown: Picture) -> str:
    return f"data:image/png;base64,{base64.b64encode(shown.data).decode()}"


def content(text: str, *shown: Picture) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url_of(p)}} for p in shown]
    return [*parts, {"type": "text", "text": text}]


FAMILIES = [f for f in ("llava", "smolvlm", "gemma3", "qwen2_5_vl", "qwen3_vl") if f in VISION_FAMILIES]


@pytest.fixture(scope="module", params=FAMILIES)
def seeing_server(request: pytest.FixtureRequest) -> Iterator[tuple[Running, LoadedModel]]:
    loaded = tiny_vision(request.param)
    running = start(loaded=loaded, aligner=tiny_aligner(loaded.model, loaded.reader))
    yield running, loaded
    running.stop()


def asked(number: int) -> Any:
    """Prompts in turn: with a picture, without, with two."""
    text = PROMPTS[number % len(PROMPTS)]
    shown = [(picture(number),), (), (picture(number), picture(number + 50))][number % 3]
    return ImagePrompt(text, shown) if shown else text


def post(server: Running, prompt: Any, **fields: Any) -> Any:
    said = prompt if isinstance(prompt, str) else content(prompt.text, *prompt.pictures)
    reply = server.chat(said, **fields)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_answers_and_scores_are_the_librarys(seeing_server: tuple[Running, LoadedModel]) -> None:
    server, loaded = seeing_server
    prompts = [asked(number) for number in range(9)]
    decisions = server.engine.call(
        lambda: server.aligner.score(loaded.model, loaded.reader, prompts)
    ).result()
    with ThreadPoolExecutor(4) as pool:  # mixed in the running batch
        found = list(pool.map(lambda prompt: post(server, prompt, max_tokens=5), prompts))
    bare = server.engine.call(lambda: _bare(server, loaded, prompts)).result()
    for answer, decision, plain in zip(found, decisions, bare, strict=True):
        report = answer["inferaligner"]
        assert report["score"] == pytest.approx(decision.score, abs=2e-3)
        assert report["open"] == decision.open
        if not decision.open:
            assert answer["choices"][0]["message"]["content"].strip() == plain
    assert {decision.open for decision in decisions} == {True, False}


def _bare(server: Running, loaded: LoadedModel, prompts: list[Any]) -> list[str]:
    """The bare model's answers, one by one; on the engine's thread, with its guard off."""
    batch = server.engine._batch
    assert batch is not None
    guard = batch.guard
    guard.__exit__(None, None, None)
    try:
        return [
            next(iter(generate_answers(loaded.model, loaded.reader, [prompt], max_new_tokens=5))).text
            for prompt in prompts
        ]
    finally:
        guard.__enter__()


def test_the_picture_is_seen(seeing_server: tuple[Running, LoadedModel]) -> None:
    server, _ = seeing_server
    # A short text: the tiny Gemma's layers look no more than sixteen tokens back.
    asked = [ImagePrompt("Hi", (picture(number),)) for number in range(3)]
    scores = {post(server, prompt)["inferaligner"]["score"] for prompt in asked}
    assert len(scores) == 3
    assert server.client.get("/inferaligner").json()["images"] is True


def test_a_prefill_after_a_picture_is_looked_at_twice(seeing_server: tuple[Running, LoadedModel]) -> None:
    server, _ = seeing_server
    prompt = content(PROMPTS[0], picture(1))
    plain = server.chat(prompt).json()["inferaligner"]["score"]
    body = {
        "messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": "Sure"}],
        "max_tokens": 4,
        "continue_final_message": True,
    }
    reply = server.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 200, reply.text
    assert reply.json()["inferaligner"]["score"] >= plain - 2e-3


def test_the_projection_takes_pictures(seeing_server: tuple[Running, LoadedModel]) -> None:
    server, _ = seeing_server
    found = []
    for number in (1, 2):
        body = {"messages": [{"role": "user", "content": content(PROMPTS[0], picture(number))}]}
        reply = server.client.post("/inferaligner/projection", json=body)
        assert reply.status_code == 200, reply.text
        found.append(reply.json()["prompt"])
    assert found[0] != found[1]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ([{"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}], "--image-host"),
        ([{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}], "--image-host"),
        ([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}], "--image-host"),
        ([{"type": "image_url", "image_url": {"url": "/etc/passwd"}}], "--image-host"),
        ([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}], "no image that can be"),
        (
            [{"type": "image_url", "image_url": {"url": "data:text/html;base64,AAAA"}}],
            "not an image's data URL",
        ),
        ([{"type": "image_url", "image_url": "data:"}], "image_url"),
        ([{"type": "input_audio", "input_audio": {}}], "messages.0.content"),
        (content("Hi", *[picture(0)] * (MOST_IMAGES + 1)), "more than"),
    ],
)
def test_what_is_not_taken(seeing_server: tuple[Running, LoadedModel], said: Any, words: str) -> None:
    server, _ = seeing_server
    reply = server.chat(said)
    assert reply.status_code == 400, reply.text
    assert words in reply.json()["error"]["message"]


def test_images_are_the_users_alone(seeing_server: tuple[Running, LoadedModel]) -> None:
    server, _ = seeing_server
    body = {"messages": [{"role": "assistant", "content": content("Look", picture(1))}], "max_tokens": 4}
    reply = server.client.post("/v1/chat/completions", json=body)
    assert reply.status_code == 400 and "Only the user's turns" in reply.json()["error"]["message"]


def test_a_place_without_a_picture_is_refused(seeing_server: tuple[Running, LoadedModel]) -> None:
    server, loaded = seeing_server
    token = loaded.processor.image_token
    place = loaded.model.config.image_token_id
    raw, chat = server.complete([5, 6, place] * 8), server.chat(f"What is {token} this?")
    assert raw.status_code == chat.status_code == 400
    assert "a place for an image" in raw.json()["error"]["message"]
    assert "1 places for one" in chat.json()["error"]["message"]


def test_a_text_model_says_that_it_reads_text_alone(server: Running) -> None:
    reply = server.chat(content("Hi", picture(1)))
    assert reply.status_code == 400 and "reads text only" in reply.json()["error"]["message"]
    assert server.client.get("/inferaligner").json()["images"] is False


class _Page(BaseHTTPRequestHandler):
    """Sends an image from /a.png, and a redirect from everywhere else."""

    def do_GET(self) -> None:
        if self.path == "/a.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(picture(1).data)
        else:
            self.send_response(302)
            self.send_header("location", "/a.png")
            self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        pass


def test_named_hosts_alone_are_fetched_from_without_redirects(monkeypatch: pytest.MonkeyPatch) -> None:
    page = HTTPServer(("127.0.0.1", 0), _Page)
    threading.Thread(target=page.serve_forever, daemon=True).start()
    place = f"127.0.0.1:{page.server_port}"
    opener = image_input._opener

    class Plain:
        """The page above has no certificate: what would be asked by https is asked by http."""

        def open(self, url: str, timeout: float) -> Any:
            return opener.open(url.replace("https://", "http://"), timeout=timeout)

    monkeypatch.setattr(image_input, "_opener", Plain())
    try:
        door = ImageInput(["127.0.0.1"])
        assert door.picture(f"https://{place}/a.png", "here") == picture(1)
        with pytest.raises(ApiError, match="could not be fetched"):
            door.picture(f"https://{place}/elsewhere", "here")
        for refused in (
            f"http://{place}/a.png",
            "https://localhost/a.png",
            "https://[broken",
            "ftp://127.0.0.1",
        ):
            with pytest.raises(InferAlignerError, match="--image-host"):
                door.picture(refused, "here")
    finally:
        page.shutdown()
