"""A server around a tiny model, on a real socket, and what its tests share."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvicorn

from inferaligner.aligner import Aligner
from inferaligner.models.loading import LoadedModel
from inferaligner.server.app import make_app
from inferaligner.server.engine.engine import Engine
from inferaligner.server.run import listen
from inferaligner.server.settings import ServerSettings
from tests.support.tiny_aligner import tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer

LONG = {"max_tokens": 150, "ignore_eos": True}


@dataclass
class Running:
    """A server that runs, and what is in it."""

    url: str
    client: httpx.Client
    engine: Engine
    model: Any
    tokenizer: Any
    aligner: Aligner
    server: uvicorn.Server
    thread: threading.Thread

    def chat(self, text: str, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
        return self.client.post("/v1/chat/completions", json={**body, **fields})

    def complete(self, prompt: Any, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"prompt": prompt, "temperature": 0, **fields})

    def metrics(self) -> dict[str, float]:
        lines = self.client.get("/metrics").text.splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        self.client.close()


Serve = Callable[..., Running]


def start(
    *,
    loaded: LoadedModel | None = None,
    aligner: Aligner | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> Running:
    if loaded is None:
        model: Any = tiny_model()
        model.generation_config.eos_token_id = 2
        loaded = LoadedModel(model, tiny_tokenizer(), "tiny")
    if aligner is None:
        aligner = tiny_aligner(loaded.model, loaded.tokenizer)
    chosen = ServerSettings(**{"model_name": "tiny", "prompts": "any", **(settings or {})})
    ready = threading.Event()
    app = make_app(loaded, aligner, chosen, on_ready=ready.set, **options)
    listener = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    assert ready.wait(60), "the server did not start"
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    client = httpx.Client(base_url=url, timeout=60)
    return Running(url, client, app.state.engine, loaded.model, loaded.tokenizer, aligner, server, thread)


def error_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    (key,) = answer.json()
    error: dict[str, Any] = answer.json()["error"]
    assert key == "error" and set(error) == {"message", "type", "param", "code"}
    return error


def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


@contextmanager
def slow(server: Running, seconds: float = 0.02) -> Iterator[None]:
    """Every pass of the model takes longer."""
    handle = server.model.register_forward_pre_hook(lambda *_: time.sleep(seconds))
    try:
        yield
    finally:
        handle.remove()
