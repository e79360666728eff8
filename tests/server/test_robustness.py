"""What goes wrong gets the right status in OpenAI's shape, and harms nobody else."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import torch

from inferaligner.models.anatomy import dissect
from tests.support.running_server import LONG, Running, Serve, error_of, slow, until
from tests.support.tiny_aligner import PROMPTS

CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"{", None),
        (b"", None),
        (b"[]", None),
        (b'"text"', None),
        (b"\xff\xfe\x00", None),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', None),
        (b"[" * 100_000, None),
        (json.dumps({}).encode(), "messages"),
        (json.dumps({"messages": []}).encode(), "messages"),
        (json.dumps({"messages": "Hi"}).encode(), "messages"),
        (json.dumps({"messages": [{"role": "cook", "content": "Hi"}]}).encode(), "messages.0.role"),
        (json.dumps({"messages": [{"role": "user", "content": None}]}).encode(), "messages.0.content"),
        (json.dumps({"messages": [{"role": "user", "content": "\ud800"}]}).encode(), "messages.0.content"),
        (json.dumps({**CHAT, "max_tokens": "8"}).encode(), "max_tokens"),
        (json.dumps({**CHAT, "max_tokens": 0}).encode(), "max_tokens"),
        (json.dumps({**CHAT, "max_tokens": 10**7}).encode(), "max_tokens"),
        (json.dumps({**CHAT, "temperature": -1}).encode(), "temperature"),
        (b'{"messages": [{"role": "user", "content": "Hi"}], "temperature": NaN}', "temperature"),
        (json.dumps({**CHAT, "temprature": 1}).encode(), "temprature"),
        (json.dumps({**CHAT, "n": 1000}).encode(), "n"),
        (json.dumps({**CHAT, "n": 100}).encode(), "n"),
        (json.dumps({**CHAT, "stop": [1]}).encode(), "stop"),
        (json.dumps({**CHAT, "logit_bias": {"x": 1}}).encode(), "logit_bias"),
        (json.dumps({**CHAT, "logit_bias": {"99999": 1}}).encode(), "logit_bias"),
        (json.dumps({**CHAT, "tools": [{"type": "function"}]}).encode(), "tools"),
        (json.dumps({**CHAT, "inferaligner": {"mode": "never"}}).encode(), "inferaligner.mode"),
        (json.dumps({**CHAT, "top_logprobs": 3}).encode(), "top_logprobs"),
        (json.dumps({**CHAT, "continue_final_message": True}).encode(), "continue_final_message"),
        (json.dumps({**CHAT, "stream_options": {}}).encode(), "stream_options"),
    ],
)
def test_bad_requests(server: Running, body: bytes, param: str | None) -> None:
    answer = server.client.post("/v1/chat/completions", content=body)
    error = error_of(answer, 400)
    assert error["type"] == "invalid_request_error" and error["message"]
    if param is not None:
        assert str(error["param"]).startswith(param)


def test_prompts_that_cannot_be(server: Running) -> None:
    limit = 256
    assert error_of(server.chat("word " * 1000), 400)["code"] == "context_length_exceeded"
    error_of(server.complete([320]), 400)
    error_of(server.complete([[1, 2], [10**6]]), 400)
    error_of(server.complete(""), 400)
    error_of(server.complete([]), 400)
    assert server.complete([5] * (limit - 2), max_tokens=1).status_code == 200
    error = error_of(server.complete([5] * (limit - 2), max_tokens=3), 400)
    assert "room for 2" in error["message"]


def test_bodies_that_are_too_large(serve: Serve) -> None:
    server = serve(settings={"max_body_bytes": 5000})
    error_of(server.chat("x" * 6000), 413)

    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    # Without a length given beforehand.
    error_of(server.client.post("/v1/chat/completions", content=parts()), 413)
    assert server.chat("Hi").status_code == 200


def test_routes_that_do_not_exist(server: Running) -> None:
    assert error_of(server.client.get("/v2"), 404)["type"] == "not_found_error"
    error_of(server.client.get("/v1/chat/completions"), 405)
    error = error_of(server.chat("Hi", model="gpt-5"), 404)
    assert error["code"] == "model_not_found" and "'tiny'" in error["message"]
    server.client.get("/no/such/route")
    routes = [name for name in server.metrics() if name.startswith("inferaligner_http_requests_total")]
    assert any('route="other"' in name for name in routes) and not any("such" in name for name in routes)


def test_a_full_queue_is_429_and_empties(serve: Serve) -> None:
    server = serve(settings={"max_rows": 1, "max_queue": 2})
    with slow(server, 0.01), ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: server.chat("Hi", max_tokens=20, ignore_eos=True), range(12)))
    statuses = sorted(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429} and statuses.count(200) >= 3
    busy = next(answer for answer in answers if answer.status_code == 429)
    error = error_of(busy, 429)
    assert error["type"] == "rate_limit_error" and error["code"] == "queue_full"
    assert busy.headers["retry-after"] == "1"
    assert server.chat("Hi").status_code == 200
    # All prompts of a request are taken, or none.
    error_of(server.complete(["one two three"] * 3), 429)
    assert server.complete(["one two three"] * 2).status_code == 200


def test_two_hundred_clients_at_once(server: Running) -> None:
    alone = {prompt: server.chat(prompt).json()["choices"][0]["message"]["content"] for prompt in PROMPTS}

    async def ask(client: httpx.AsyncClient, prompt: str) -> bool:
        body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 8, "temperature": 0}
        answer = await client.post("/v1/chat/completions", json=body)
        assert answer.status_code == 200, answer.text
        return bool(answer.json()["choices"][0]["message"]["content"] == alone[prompt])

    async def everybody() -> list[bool]:
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=120) as client:
            return await asyncio.gather(*(ask(client, PROMPTS[at % len(PROMPTS)]) for at in range(200)))

    assert all(asyncio.run(everybody()))


def test_a_vanished_client_frees_its_row(serve: Serve) -> None:
    server = serve()
    body = {**CHAT, **LONG, "stream": True}
    with slow(server):
        with server.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            next(answer.iter_lines())
            until(lambda: server.engine.load.running == 1)
        until(lambda: server.engine.load.running == 0, 2)  # 150 tokens would have taken 3 seconds
        # One that waits for a whole answer, and one that never reads.
        request = json.dumps({**CHAT, **LONG}).encode()
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as raw:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n\r\n"
            raw.sendall(head.encode() + request)
            until(lambda: server.engine.load.running == 1)
        until(lambda: server.engine.load.running == 0, 2)
    assert server.chat("Hi").status_code == 200


def test_a_vanished_client_leaves_the_queue(serve: Serve) -> None:
    server = serve(settings={"max_rows": 1})
    with slow(server), ThreadPoolExecutor(1) as pool:
        running = pool.submit(server.chat, "Hi", **LONG)
        until(lambda: server.engine.load.running == 1)
        with pytest.raises(httpx.ReadTimeout):
            server.client.post("/v1/chat/completions", json=CHAT, timeout=0.3)
        until(lambda: server.engine.load.waiting == 0, 2)
        assert running.result().status_code == 200


def test_a_client_that_does_not_read_blocks_nobody(serve: Serve) -> None:
    server = serve()
    request = json.dumps({**CHAT, **LONG, "stream": True, "logprobs": True, "top_logprobs": 20}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    lazy = socket.socket()
    lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    lazy.connect((host, int(port)))
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n\r\n"
    lazy.sendall(head.encode() + request)
    for prompt in PROMPTS:
        assert server.chat(prompt).status_code == 200
    until(lambda: server.engine.load.running == 0)  # its answer is made, and waits for it
    lazy.close()
    assert server.chat("Hi").status_code == 200


class Fault(Exception):
    pass


@pytest.mark.parametrize("when", ["prefill", "decode"])
def test_a_model_error_in_one_row_fails_that_row_alone(serve: Serve, when: str) -> None:
    server = serve()
    fine = {prompt: server.chat(prompt, **LONG).json() for prompt in PROMPTS}
    cursed = 300  # a token that no other request has

    def fault(model: Any, args: Any, kwargs: Any) -> None:
        ids = kwargs["input_ids"]
        if (ids == cursed).any() and (ids.shape[1] > 1) == (when == "prefill"):
            raise Fault("no such number")

    handle = server.model.register_forward_pre_hook(fault, with_kwargs=True)
    prompt = [5, 6, 7, cursed] if when == "prefill" else [5, 6, 7, 8]
    bias = {} if when == "prefill" else {"logit_bias": {str(cursed): 100}}
    with slow(server, 0.005), ThreadPoolExecutor(8) as pool:
        others = [pool.submit(server.chat, text, **LONG) for text in PROMPTS]
        until(lambda: server.engine.load.running >= 2)
        bad = server.complete(prompt, max_tokens=20, **bias)
        streamed = server.complete(prompt, max_tokens=20, stream=True, **bias)
        results = [other.result() for other in others]
    handle.remove()
    error = error_of(bad, 500)
    assert error["type"] == "server_error" and "Fault" in error["message"]
    assert "no such number" not in error["message"]  # what an exception says may hold parts of a prompt
    if streamed.status_code == 200:
        assert '"error"' in streamed.text and streamed.text.endswith("data: [DONE]\n\n")
    for text, answer in zip(PROMPTS, results, strict=True):
        assert answer.status_code == 200
        assert answer.json()["choices"] == fine[text]["choices"]
        assert answer.json()["inferaligner"]["open"] == fine[text]["inferaligner"]["open"]
    assert server.metrics()["inferaligner_failed_total"] == 2


def test_numbers_that_are_none_fail_one_row_and_stay_there(serve: Serve) -> None:
    """NaN in one row's cache would reach whoever gets its place, if it were left there."""
    server = serve()
    fine = {prompt: server.chat(prompt, **LONG).json()["choices"] for prompt in PROMPTS}
    poison = 300
    embedding = server.model.get_input_embeddings().weight
    kept = embedding.data[poison].clone()
    with slow(server, 0.005), ThreadPoolExecutor(8) as pool:
        others = [pool.submit(server.chat, text, **LONG) for text in PROMPTS[:3]]
        until(lambda: server.engine.load.running >= 2)
        embedding.data[poison] = torch.nan
        bad = [server.complete([5, 6, poison, 7], max_tokens=20) for _ in range(3)]
        later = [pool.submit(server.chat, text, **LONG) for text in PROMPTS[3:]]
        results = [each.result() for each in (*others, *later)]
    embedding.data[poison] = kept
    for answer in bad:
        error_of(answer, 500)
    for text, answer in zip(PROMPTS, results, strict=True):
        assert answer.json()["choices"] == fine[text]


def test_it_goes_on_after_a_fault_of_its_own(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve()

    def broken() -> None:
        raise Fault("a defect")

    monkeypatch.setattr(server.engine, "_admit", broken)
    error_of(server.chat("Hi"), 500)
    monkeypatch.undo()
    assert server.chat("Hi").status_code == 200


def test_shutting_down_finishes_what_runs(serve: Serve) -> None:
    server = serve()
    whole = server.chat("Hi", **LONG).json()["choices"]
    until(lambda: server.engine.load.running == 0)  # its row leaves the batch after the answer is sent
    parts: list[str] = []

    def read() -> None:
        body = {**CHAT, **LONG, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=60) as answer:
            parts.extend(answer.iter_lines())

    with slow(server, 0.01):
        reader = threading.Thread(target=read)
        reader.start()
        until(lambda: server.engine.load.running == 1)
        began = time.monotonic()
        server.server.should_exit = True
        server.thread.join(60)
        reader.join(60)
    assert not server.thread.is_alive() and not server.engine.alive
    assert time.monotonic() - began > 0.5, "it was over before the shutdown; the test shows nothing"
    chunks = [json.loads(line[6:]) for line in parts if line.startswith("data: {")]
    text = "".join(c["delta"].get("content", "") for chunk in chunks for c in chunk["choices"])
    assert text == whole[0]["message"]["content"] and "data: [DONE]" in parts
    # The model is as it was before.
    assert not any(layer._forward_hooks for layer in dissect(server.model).layers)
