"""The server as an operator starts it and clients meet it, with the real `openai` client."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from inferaligner.fit.operating_point.stored_scores import read_scores
from tests.support.vllm_deployment import DEEP_READS, PROMPTS, Deployment, deploy

pytest.importorskip("vllm", reason="vLLM has an environment of its own: make test-vllm")

FLAGS = ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "4", "--enforce-eager"]
FLAGS += ["--num-gpu-blocks-override", "64", "--served-model-name", "tiny"]


@dataclass(frozen=True)
class Server:
    deployment: Deployment
    address: str
    log: Path

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.address + path) as answer:
            return str(answer.read().decode())

    def client(self) -> Any:
        from openai import OpenAI

        return OpenAI(base_url=f"{self.address}/v1", api_key="none", max_retries=0)


@contextmanager
def running(
    folder: Path,
    deployment: Deployment,
    *flags: str,
    target: Path | None = None,
    options: Sequence[str] = (),
) -> Iterator[Server]:
    """A server in processes of its own, started as an operator does it.

    `options` are those of `inferaligner serve`, `flags` are vLLM's.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "inferaligner.cli.main", "serve"]
    command += [str(target or deployment.target)]
    command += ["--aligner", str(deployment.folder), "--engine", "vllm"]
    command += ["--audit-log", str(folder / "audit.jsonl"), *options]
    command += ["--", "--host", "127.0.0.1", "--port", str(port), *FLAGS, *flags]
    environment = {**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
    found = Server(deployment, f"http://127.0.0.1:{port}", folder / "audit.jsonl")
    try:
        for _ in range(900):
            assert process.poll() is None, (folder / "server.log").read_text()[-4000:]
            try:
                found.get("/health")
                break
            except OSError:
                time.sleep(1)
        yield found
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with running(folder, deploy(folder, reads=DEEP_READS)) as found:
        yield found


def ask(server: Server, prompt: str, **options: Any) -> Any:
    settings = {
        "model": "tiny",
        "max_tokens": 6,
        "temperature": 0,
        "extra_body": {"ignore_eos": True},
        **options,
    }
    return server.client().chat.completions.create(messages=[{"role": "user", "content": prompt}], **settings)


def counted(server: Server) -> float:
    """Requests by the metrics."""
    lines = server.get("/metrics").splitlines()
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith("inferaligner_requests_total{")
    )


def whole(text: str) -> str:
    """Without the bytes at the end that make no letter yet: vLLM keeps those back."""
    return text.rstrip("\ufffd")


def decided(server: Server, prompt: str) -> tuple[float, bool, str]:
    """Score, decision and answer of transformers."""
    deployment = server.deployment
    (tokens,) = deployment.tokens([prompt])
    decision, answer = deployment.expected(tokens, 6)
    text = deployment.tokenizer.decode(answer, skip_special_tokens=True)
    return decision.score, decision.open, whole(text)


def test_answers_carry_the_decision(server: Server) -> None:
    seen = set()
    for prompt in PROMPTS:
        answer = ask(server, prompt)
        score, is_open, text = decided(server, prompt)
        assert answer.inferaligner["score"] == pytest.approx(score, abs=1e-4)
        assert answer.inferaligner["open"] == is_open
        assert answer.inferaligner["layer"] == server.deployment.aligner.artifact.gate.last_layer
        assert answer.inferaligner["strength"] == server.deployment.aligner.artifact.steering.strength
        assert whole(answer.choices[0].message.content) == text
        assert answer.kv_transfer_params is None
        seen.add(is_open)
    assert seen == {True, False}


def test_streams_carry_it_in_their_last_chunk(server: Server) -> None:
    for prompt in PROMPTS[:4]:
        chunks = list(ask(server, prompt, stream=True))
        score, is_open, text = decided(server, prompt)
        # As OpenAI's documentation reads a stream.
        assert whole("".join(chunk.choices[0].delta.content or "" for chunk in chunks)) == text
        assert chunks[-1].choices[0].finish_reason == "length"
        assert chunks[-1].inferaligner["score"] == pytest.approx(score, abs=1e-4)
        assert chunks[-1].inferaligner["open"] == is_open
        assert not any(hasattr(chunk, "inferaligner") for chunk in chunks[:-1])


def test_usage_is_the_one_chunk_without_a_choice(server: Server) -> None:
    options = {"n": 2, "temperature": 1, "stream_options": {"include_usage": True}}
    chunks = list(ask(server, PROMPTS[0], stream=True, **options))
    assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    ended = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert [hasattr(chunk, "inferaligner") for chunk in ended] == [False, True]
    (tokens,) = server.deployment.tokens(PROMPTS[:1])
    raw = server.client().completions.create(model="tiny", prompt=tokens, max_tokens=3, stream=True)
    assert all(len(chunk.choices) == 1 for chunk in raw)


def test_a_conversation_goes_on_with_the_messages_it_got(server: Server) -> None:
    messages: list[Any] = [{"role": "user", "content": PROMPTS[0]}]
    client = server.client()
    for question in PROMPTS[1:3]:
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
        messages += [answer.choices[0].message, {"role": "user", "content": question}]
    # What other servers of OpenAI's shape, and the streaming helper of its client, add to a message.
    others = {"refusal": None, "annotations": [], "audio": None, "function_call": None, "tool_calls": []}
    others |= {"parsed": None, "reasoning_content": None, "name": None}
    for content in ("Well.", None):
        messages[1] = {"role": "assistant", "content": content, **others}
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=4)
        assert answer.choices


@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "tool_choice": "auto"},
        {"tools": None, "tool_choice": "none"},
        {"functions": [], "function_call": "none"},
        {"n": None, "stop": None, "min_tokens": None, "stream_options": None, "logprobs": None},
        {"safety_identifier": "u1", "prompt_cache_key": "k", "metadata": {"a": "b"}, "service_tier": "auto"},
        {"store": False, "modalities": ["text"], "response_format": {"type": "text"}, "audio": None},
        {"parallel_tool_calls": True, "prediction": None, "web_search_options": None, "verbosity": None},
    ],
    ids=str,
)
def test_fields_that_say_nothing(server: Server, fields: dict[str, Any]) -> None:
    answer = ask(server, PROMPTS[0], extra_body={"ignore_eos": True, **fields})
    assert whole(answer.choices[0].message.content) == decided(server, PROMPTS[0])[2]


def test_tools_are_refused_with_the_reason(server: Server) -> None:
    from openai import BadRequestError

    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    with pytest.raises(BadRequestError, match="tool"):
        ask(server, PROMPTS[0], tools=tools)


def test_errors_name_the_field_as_it_was_written(server: Server) -> None:
    from openai import BadRequestError

    part = [{"role": "user", "content": [{"type": "text", "text": 5}]}]
    for fields, param in (
        ({"messages": part}, "messages.0.content.0.text"),
        ({"stop": 5}, "stop"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ):
        with pytest.raises(BadRequestError) as caught:
            ask(server, PROMPTS[0], extra_body=fields)
        assert caught.value.param == param
        assert "Param" not in str(caught.value) and "validation error" not in str(caught.value)


def test_probes_and_browsers(server: Server) -> None:
    import httpx

    origin = {"origin": "http://localhost:3000", "access-control-request-method": "POST"}
    with httpx.Client(base_url=server.address) as client:
        for path in ("/health", "/v1/models", "/inferaligner"):
            head = client.head(path)
            assert head.status_code == 200 and head.content == b""
        assert client.get("/v1/models/").json()["data"][0]["id"] == "tiny"
        assert client.get("/v1/models/tiny").json()["id"] == "tiny"
        assert client.get("/v1/models/other").status_code == 404
        assert (
            "access-control-allow-origin"
            not in client.options("/v1/chat/completions", headers=origin).headers
        )
        assert "access-control-allow-origin" not in client.get("/v1/models", headers=origin).headers


def test_the_responses_api_carries_it(server: Server) -> None:
    answer = server.client().responses.create(model="tiny", input=PROMPTS[0], max_output_tokens=6)
    assert answer.inferaligner["open"] == decided(server, PROMPTS[0])[1]
    events = list(
        server.client().responses.create(model="tiny", input=PROMPTS[0], max_output_tokens=6, stream=True)
    )
    assert events[-1].response.inferaligner["open"] == decided(server, PROMPTS[0])[1]


@pytest.mark.parametrize("stream", [False, True])
def test_headers_carry_it_for_proxies(server: Server, stream: bool) -> None:
    for prompt in PROMPTS[:4]:
        with server.client().chat.completions.with_streaming_response.create(
            model="tiny", messages=[{"role": "user", "content": prompt}], max_tokens=2, stream=stream
        ) as answer:
            told = answer.headers["x-inferaligner-open"]
            answer.read()
        assert told == str(decided(server, prompt)[1]).lower()


def test_vllm_bench_serve(server: Server, tmp_path: Path) -> None:
    """vLLM's own load generator meets the server; every one of its requests is decided."""
    before = json.loads(server.get("/inferaligner"))["counts"].get("requests", 0)
    command = [sys.executable, "-m", "inferaligner.vllm.launch", "bench", "serve", "--model", "tiny"]
    command += ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]
    command += ["--base-url", server.address, "--tokenizer", str(server.deployment.target)]
    command += ["--dataset-name", "random", "--input-len", "24", "--output-len", "6", "--num-prompts", "20"]
    command += ["--max-concurrency", "8", "--ignore-eos", "--save-result", "--result-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    (file,) = tmp_path.glob("*.json")
    result = json.loads(file.read_text())
    assert result["completed"] == 20 and result["total_output_tokens"] == 120
    after = json.loads(server.get("/inferaligner"))["counts"]["requests"]
    assert after - before >= 20  # the load generator sends one or more to warm up


def test_several_answers_and_logprobs(server: Server) -> None:
    body = {"ignore_eos": True, "top_k": 1}
    answer = ask(server, PROMPTS[0], n=2, temperature=1, logprobs=True, top_logprobs=2, extra_body=body)
    _, is_open, text = decided(server, PROMPTS[0])
    assert [whole(choice.message.content) for choice in answer.choices] == [text, text]
    assert answer.inferaligner["open"] == is_open


@pytest.mark.parametrize(
    "body",
    [
        {"add_generation_prompt": False},
        {"continue_final_message": True, "add_generation_prompt": False},
        {"chat_template": "{{ messages[0]['content'] }}"},
    ],
    ids=lambda body: next(iter(body)),
)
def test_clients_cannot_move_the_end_of_the_prompt(server: Server, body: dict[str, Any]) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError):
        ask(server, PROMPTS[0], extra_body=body)


def test_raw_completions_are_refused_with_the_reason(server: Server) -> None:
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="chat template"):
        server.client().completions.create(model="tiny", prompt="Why is the sky", max_tokens=4)
    (tokens,) = server.deployment.tokens(PROMPTS[:1])
    answer = server.client().completions.create(model="tiny", prompt=tokens, max_tokens=4, temperature=0)
    assert answer.inferaligner["open"] == decided(server, PROMPTS[0])[1]


def test_no_field_of_a_request_switches_the_gate_off(server: Server) -> None:
    lies = {"shadow": True, "open": False, "action": "none"}
    body = {"ignore_eos": True, "inferaligner": lies, "kv_transfer_params": {"inferaligner": lies}}
    body["vllm_xargs"] = {"inferaligner": "off"}
    for prompt in PROMPTS[:4]:
        answer = ask(server, prompt, extra_body=body)
        _, is_open, text = decided(server, prompt)
        assert answer.inferaligner["open"] == is_open
        assert whole(answer.choices[0].message.content) == text


def test_info_metrics_and_audit_log_agree(server: Server) -> None:
    before = json.loads(server.get("/inferaligner"))["counts"]
    lines = len(server.log.read_text().splitlines())
    for prompt in PROMPTS:
        ask(server, prompt)
    info = json.loads(server.get("/inferaligner"))
    assert info["active"]
    assert info["aligner"]["sha256"] == server.deployment.aligner.artifact.digest()
    assert info["counts"]["requests"] - before["requests"] == len(PROMPTS)
    assert info["counts"]["opened"] - before["opened"] == len(PROMPTS) // 2
    written = server.log.read_text().splitlines()[lines:]
    assert len(written) == len(PROMPTS)
    gate = server.deployment.aligner.artifact.gate
    assert {json.loads(line)["bias"] for line in written} == {gate.bias}
    # What `calibrate --scores` makes of it, for this gate and for one whose bias was moved since.
    scores = [json.loads(line)["score"] for line in written]
    assert read_scores(server.log, gate.bias)[lines:] == pytest.approx(scores)
    assert read_scores(server.log, gate.bias + 1)[lines:] == pytest.approx([each + 1 for each in scores])
    assert counted(server) == info["counts"]["requests"]
    assert "inferaligner_gate_score_bucket" in server.get("/metrics")


@pytest.mark.slow
def test_data_parallel(tmp_path: Path) -> None:
    """Two engines behind one server, each with a gate of its own; one audit log."""
    deployment = deploy(tmp_path, reads=DEEP_READS)
    with running(tmp_path, deployment, "--data-parallel-size", "2") as server:
        asked = [*PROMPTS, *PROMPTS]
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda prompt: ask(server, prompt), asked))
        for prompt, answer in zip(asked, answers, strict=True):
            _, is_open, text = decided(server, prompt)
            assert answer.inferaligner["open"] == is_open
            assert whole(answer.choices[0].message.content) == text
        # vLLM starts an API process for each engine; its metrics are of all of them together.
        assert counted(server) == len(asked)
        assert len(server.log.read_text().splitlines()) == len(asked)
        started = (tmp_path / "server.log").read_text()
    assert started.count("Started server process") == 2


@pytest.mark.slow
def test_a_refusal_is_a_text(tmp_path: Path) -> None:
    """Whole and in streams, with log probabilities, and longer than the answer may be."""
    deployment = deploy(tmp_path, reads=DEEP_READS)
    seen = set()
    options = ["--on-open", "refuse", "--refusal", "Not that, please."]
    with running(tmp_path, deployment, options=options) as server:
        for prompt in PROMPTS[:5]:
            answer = ask(server, prompt, max_tokens=2, logprobs=True, top_logprobs=2)
            stream = list(ask(server, prompt, max_tokens=2, stream=True))
            streamed = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
            is_open = answer.inferaligner["open"]
            seen.add(is_open)
            (choice,) = answer.choices
            assert (choice.message.content == streamed == "Not that, please.") == is_open
            if is_open:
                assert answer.inferaligner["action"] == "refused" and choice.finish_reason == "stop"
                assert {token.logprob for token in choice.logprobs.content} == {0.0}
    assert seen == {True, False}


@pytest.mark.slow
def test_a_lora_adapter_as_the_target(tmp_path: Path) -> None:
    """One command serves it on its base model; the base model itself is refused."""
    from openai import BadRequestError

    deployment = deploy(tmp_path, reads=DEEP_READS, adapter=True, monitor=2)
    file = tmp_path / "medicine" / "adapter_config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "base_model_name_or_path": str(deployment.target)}))
    with running(tmp_path, deployment, target=tmp_path / "medicine") as server:
        seen = set()
        for prompt in PROMPTS:
            (tokens,) = deployment.tokens([prompt])
            decision, expected = deployment.expected(tokens, 24)
            answer = ask(server, prompt, model="medicine", max_tokens=24)
            told = answer.inferaligner
            assert told["open"] == (decision.opened_at is not None)
            assert told.get("opened_at") == decision.answer_token
            text = deployment.tokenizer.decode(expected, skip_special_tokens=True)
            assert whole(answer.choices[0].message.content) == whole(text)
            seen.add("answer" if decision.answer_token else decision.opened_at)
        assert seen == {"prompt", "answer", None}
        with pytest.raises(BadRequestError, match="fitted on the adapter"):
            ask(server, PROMPTS[0])
        info = json.loads(server.get("/inferaligner"))
        assert (info["adapter"], info["adapters"], info["monitor"]) == ("medicine", "own", True)
        assert info["counts"]["opened by the monitor"] == 2
        assert "inferaligner_monitor_opened_total 2.0" in server.get("/metrics")
