"""A server around a tiny model, on a real socket."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("uvicorn", reason="the extra `serve` is not installed")

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


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers that are stopped after the test."""
    running: list[Running] = []

    def make(**options: Any) -> Running:
        running.append(start(**options))
        return running[-1]

    yield make
    for each in running:
        each.stop()


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    """One for a whole module. Do not change it."""
    running = start()
    yield running
    running.stop()


@pytest.fixture
def key_file(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a key file."""

    def write(text: str) -> Path:
        file = tmp_path / "keys"
        file.write_text(text, encoding="utf-8")
        return file

    return write
