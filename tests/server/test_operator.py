"""What the operator can set: shadow mode, refusals, keys, overrides, the audit log, a new operating point."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from inferaligner.aligner import Aligner
from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import InputError
from inferaligner.fit.operating_point.stored_scores import read_scores
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.chat import encode_chats
from inferaligner.server.keys import ApiKeys
from inferaligner.server.settings import ServerSettings
from inferaligner.storage.audit_log import AuditFile
from tests.support.running_server import LONG, Running, Serve, error_of, slow, until
from tests.support.tiny_aligner import PROMPTS, tiny_aligner
from tests.support.tiny_models import tiny_model, tiny_tokenizer


def split(server: Running) -> tuple[str, str]:
    """A prompt that opens the gate, and one that does not."""
    reports = {prompt: server.chat(prompt).json()["inferaligner"]["open"] for prompt in PROMPTS}
    return next(p for p in PROMPTS if reports[p]), next(p for p in PROMPTS if not reports[p])


def text_of(answer: Any) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def bare(server: Running, prompt: str, tokens: int = 8) -> str:
    """The bare model's greedy answer, from a model without hooks."""
    import torch

    model = tiny_model()
    model.generation_config.eos_token_id = 2
    (ids,) = encode_chats(server.tokenizer, [prompt])
    output = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    return str(server.tokenizer.decode(output[0, len(ids) :], skip_special_tokens=True))


def test_shadow_mode_decides_and_steers_nothing(serve: Serve) -> None:
    server, steering = serve(settings={"shadow": True}), serve()
    opens, closed = split(server)
    answer = server.chat(opens)
    assert answer.json()["inferaligner"]["action"] == "shadow" and answer.json()["inferaligner"]["open"]
    assert text_of(answer) == bare(server, opens) != text_of(steering.chat(opens))
    assert server.chat(closed).json()["inferaligner"]["action"] == "none"
    assert server.client.get("/inferaligner").json()["shadow"] is True


def test_refusals_replace_the_answer(serve: Serve) -> None:
    server = serve(settings={"on_open": "refuse", "refusal": "Not that."})
    opens, closed = split(server)
    answer = server.chat(opens, n=2).json()
    for choice in answer["choices"]:
        assert choice["message"]["content"] == "Not that." and choice["finish_reason"] == "content_filter"
    assert answer["usage"]["completion_tokens"] == 0
    assert answer["inferaligner"]["action"] == "refused"
    streamed = server.chat(opens, stream=True).text
    assert "Not that." in streamed and '"content_filter"' in streamed
    assert text_of(server.chat(closed)) == bare(server, closed)


def test_a_gate_alone_refuses(serve: Serve) -> None:
    from inferaligner.method.steering_settings import SteeringSettings

    model, tokenizer = tiny_model(), tiny_tokenizer()
    whole = tiny_aligner(model, tokenizer).artifact
    alone = replace(
        whole,
        steering=SteeringSettings(layers=(), strength=0.0),
        provenance=whole.provenance.model_copy(update={"aligned": None}),
    )
    server = serve(
        loaded=LoadedModel(model, tokenizer, "tiny"),
        aligner=Aligner(alone),
        settings={"on_open": "refuse"},
    )
    opens, _ = split(server)
    assert "sorry" in text_of(server.chat(opens))


def test_overrides_only_where_they_are_allowed(serve: Serve) -> None:
    strict, free = serve(), serve(settings={"allow_override": True})
    opens, closed = split(strict)
    error = error_of(strict.chat(opens, inferaligner={"strength": 0.0}), 403)
    assert error["code"] == "override_not_allowed" and error["param"] == "inferaligner.strength"
    assert error_of(free.chat(opens, inferaligner={"strength": -1.0}), 400)
    off = free.chat(opens, inferaligner={"strength": 0.0})
    assert text_of(off) == bare(free, opens) != text_of(free.chat(opens))
    report = off.json()["inferaligner"]
    assert report["open"] and report["action"] == "overridden" and report["strength"] == 0
    weaker = free.chat(opens, inferaligner={"strength": 0.5}, logprobs=True).json()
    fitted = free.chat(opens, logprobs=True).json()
    assert weaker["inferaligner"]["strength"] == 0.5
    assert weaker["choices"][0]["logprobs"] != fitted["choices"][0]["logprobs"]
    assert text_of(free.chat(closed, inferaligner={"strength": 6.0})) == bare(free, closed)


def test_overrides_do_not_reach_neighbours(serve: Serve) -> None:
    server = serve(settings={"allow_override": True})
    opens, closed = split(server)
    asked = [(p, s) for p in (opens, closed) for s in (None, 0.0, 1.0, 6.0)] * 2
    own = {None: {}, **{s: {"inferaligner": {"strength": s}} for s in (0.0, 1.0, 6.0)}}
    alone = {(p, s): text_of(server.chat(p, max_tokens=30, **own[s])) for p, s in asked}
    with slow(server, 0.003), ThreadPoolExecutor(16) as pool:
        texts = pool.map(lambda one: text_of(server.chat(one[0], max_tokens=30, **own[one[1]])), asked)
        assert list(texts) == [alone[one] for one in asked]


def test_keys_open_routes(serve: Serve, key_file: Callable[[str], Path]) -> None:
    hashed = hashlib.sha256(b"sk-hidden").hexdigest()
    file = key_file(f"# keys\nsk-chat /v1/chat /v1/models\nsk-all\nsha256:{hashed} /metrics /admin\n")
    server = serve(keys=ApiKeys.read(file))

    def status(method: str, path: str, key: str | None, **options: Any) -> int:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return server.client.request(method, path, headers=headers, **options).status_code

    chat = {"json": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}}
    raw = {"json": {"prompt": "Once upon", "max_tokens": 1}}
    assert status("GET", "/health", None) == 200 and status("GET", "/", None) == 200
    assert status("POST", "/v1/chat/completions", None, **chat) == 401
    assert status("POST", "/v1/chat/completions", "wrong", **chat) == 401
    assert status("POST", "/v1/chat/completions", "sk-chat", **chat) == 200
    assert status("POST", "/v1/completions", "sk-chat", **raw) == 403
    assert status("POST", "/v1/completions", "sk-all", **raw) == 200
    assert status("GET", "/inferaligner", "sk-all") == 200 and status("GET", "/inferaligner", None) == 401
    assert status("GET", "/metrics", "sk-hidden") == 200
    assert status("POST", "/v1/completions", "sk-hidden", **raw) == 403
    assert status("POST", "/admin/aligner", "sk-all", json={}) == 403
    assert status("POST", "/admin/aligner", "sk-hidden", json={}) == 400  # in, but there is no folder


def test_key_files_that_make_no_sense(key_file: Callable[[str], Path], tmp_path: Path) -> None:
    for text, words in (("", "no key"), ("sk v1", "line 1"), ("sha256:abc /v1", "line 1")):
        with pytest.raises(InputError, match=words):
            ApiKeys.read(key_file(text))
    with pytest.raises(InputError, match="cannot be read"):
        ApiKeys.read(tmp_path / "none")


def test_admin_routes_are_shut_without_keys(serve: Serve) -> None:
    error_of(serve().client.post("/admin/aligner", json={}), 403)


def test_the_audit_log(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "logs" / "audit.jsonl"
    server = serve(audit=AuditFile(file))
    answers = [server.chat(prompt).json() for prompt in PROMPTS]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert len(rows) == len(PROMPTS) and file.stat().st_mode & 0o077 == 0
    bias = server.aligner.artifact.gate.bias
    for row, answer, ids in zip(rows, answers, encode_chats(server.tokenizer, PROMPTS), strict=True):
        assert row["request"] == answer["id"] and row["prompt_tokens"] == len(ids)
        assert row["prompt_sha256"] == hashlib.sha256(array("q", ids).tobytes()).hexdigest()
        assert row["score"] == answer["inferaligner"]["score"] and row["bias"] == bias
        assert row["open"] == answer["inferaligner"]["open"]
        assert row["action"] == answer["inferaligner"]["action"]
        assert "prompt" not in row
    # What calibrate reads: the scores as a gate of another bias gives them.
    shifted = read_scores(file, bias + 1)
    assert shifted == pytest.approx([row["score"] + 1 for row in rows])


def test_the_audit_log_with_prompts(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    server = serve(audit=AuditFile(file), audit_text=True)
    server.chat(PROMPTS[0])
    assert PROMPTS[0] in json.loads(file.read_text())["prompt"]


def test_logs_rotate(tmp_path: Path) -> None:
    log = AuditFile(tmp_path / "audit.jsonl", max_bytes=100, keep=2)
    for number in range(40):
        log.write({"number": number, "text": "é" * 10})
    log.close()
    files = sorted(tmp_path.iterdir())
    assert [file.name for file in files] == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    assert all(file.stat().st_size <= 100 for file in files)
    rows = [json.loads(line)["number"] for file in reversed(files) for line in file.read_text().splitlines()]
    assert rows == list(range(40 - len(rows), 40)) and len(rows) >= 3
    assert all(file.stat().st_mode & 0o077 == 0 for file in files)
    with pytest.raises(InputError, match="cannot be written"):
        AuditFile(tmp_path)


def test_a_rotating_log_without_former_files_begins_again(tmp_path: Path) -> None:
    log = AuditFile(tmp_path / "audit.jsonl", max_bytes=100, keep=0)
    for number in range(10):
        log.write({"number": number, "text": "é" * 10})
    log.write({"text": "é" * 100})  # longer than a file may be, and recorded all the same
    log.close()
    (file,) = tmp_path.iterdir()
    assert [json.loads(line)["text"] for line in file.read_text().splitlines()] == ["é" * 100]


def test_a_log_that_cannot_be_written_raises(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no device that is always full")
    with pytest.raises(OSError, match="No space left"):
        AuditFile("/dev/full").write({"number": 1})


@pytest.fixture
def swappable(serve: Serve, tmp_path: Path, key_file: Callable[[str], Path]) -> tuple[Running, Path]:
    model: Any = tiny_model()
    model.generation_config.eos_token_id = 2
    tokenizer = tiny_tokenizer()
    aligner = tiny_aligner(model, tokenizer)
    folder = aligner.save_pretrained(tmp_path / "aligner")
    keys = ApiKeys.read(key_file("sk-user /v1\nsk-admin /admin /v1 /inferaligner"))
    server = serve(
        loaded=LoadedModel(model, tokenizer, "tiny"), aligner=aligner, keys=keys, folder=str(folder)
    )
    server.client.headers["authorization"] = "Bearer sk-admin"
    return server, folder


def move(folder: Path, bias: float) -> AlignerArtifact:
    artifact = AlignerArtifact.read(folder)
    moved = replace(artifact, gate=artifact.gate.with_bias(bias))
    moved.update(folder, "card")
    return moved


def test_a_new_operating_point_without_a_pause(swappable: tuple[Running, Path]) -> None:
    server, folder = swappable
    opens, closed = split(server)
    whole = {prompt: text_of(server.chat(prompt, **LONG)) for prompt in (opens, closed)}
    bias = server.aligner.artifact.gate.bias
    moved = move(folder, -1000.0)
    with slow(server, 0.01), ThreadPoolExecutor(4) as pool:
        running = [pool.submit(server.chat, prompt, **LONG) for prompt in (opens, closed)]
        until(lambda: server.engine.load.running == 2)
        told = server.client.post("/admin/aligner", json={})
        assert told.status_code == 200, told.text
        assert told.json()["before"]["bias"] == bias and told.json()["after"]["bias"] == -1000.0
        during = server.chat(opens).json()["inferaligner"]
        assert not any(each.done() for each in running), "they were over before the swap"
        # Running answers keep their decision, and every token.
        assert [text_of(each.result()) for each in running] == [whole[opens], whole[closed]]
    assert not during["open"] and during["aligner"] == moved.digest()[:12]
    assert text_of(server.chat(opens)) == bare(server, opens)
    assert server.client.get("/inferaligner").json()["aligner"]["bias"] == -1000.0
    move(folder, bias)
    assert server.client.post("/admin/aligner", json={"aligner": str(folder)}).status_code == 200
    assert text_of(server.chat(opens, **LONG)) == whole[opens]


def test_swaps_that_are_refused(swappable: tuple[Running, Path], tmp_path: Path) -> None:
    server, folder = swappable
    before = server.client.get("/inferaligner").json()["aligner"]
    post = server.client.post
    error_of(post("/admin/aligner", json={"aligner": str(tmp_path / "none")}), 400)
    error_of(post("/admin/aligner", json={"folder": "x"}), 400)
    artifact = AlignerArtifact.read(folder)
    stronger = Aligner(artifact.with_steering(strength=9.0)).save_pretrained(tmp_path / "stronger")
    assert (
        "steering settings"
        in error_of(post("/admin/aligner", json={"aligner": str(stronger)}), 409)["message"]
    )
    other = tiny_aligner(server.model, server.tokenizer, seed=5).save_pretrained(tmp_path / "other")
    assert "the gate" in error_of(post("/admin/aligner", json={"aligner": str(other)}), 409)["message"]
    (folder / "vectors.safetensors").write_bytes(b"broken")
    error_of(post("/admin/aligner", json={}), 400)
    user = {"authorization": "Bearer sk-user"}
    error_of(post("/admin/aligner", json={}, headers=user), 403)
    assert server.client.get("/inferaligner").json()["aligner"] == before
    assert server.chat("Hi").status_code == 200


def test_prompts_of_another_ending(serve: Serve) -> None:
    server = serve(settings={"prompts": ServerSettings().prompts})
    error = error_of(server.complete("Once upon a time there was", max_tokens=4), 400)
    assert "--prompts any" in error["message"]
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure"}]
    body = {"messages": turns, "continue_final_message": True}
    error_of(server.client.post("/v1/chat/completions", json=body), 400)
    rendered = server.tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert server.complete(rendered, max_tokens=4).status_code == 200
    assert server.chat("Hi").status_code == 200


def test_metrics(serve: Serve) -> None:
    server = serve()
    for prompt in PROMPTS * 5:
        server.chat(prompt, max_tokens=2)
    found = server.metrics()
    opened = 'inferaligner_requests_total{action="steered",open="true"}'
    closed = 'inferaligner_requests_total{action="none",open="false"}'
    assert found[opened] + found[closed] == 25 and found[opened] and found[closed]
    assert found["inferaligner_gate_score_count"] == 25
    assert found['inferaligner_http_requests_total{route="/v1/chat/completions",status="200"}'] == 25
    assert found["inferaligner_request_seconds_count"] == 25
    assert found['inferaligner_tokens_total{kind="prompt"}'] > 25 * 10
    assert found["inferaligner_queue_depth"] == 0 and found["inferaligner_running_rows"] == 0


def test_the_drift_gauge(serve: Serve) -> None:
    from inferaligner.fit.operating_point.recalibrate import recalibrate

    model: Any = tiny_model()
    tokenizer = tiny_tokenizer()
    aligner = tiny_aligner(model, tokenizer)
    usual = [f"Why is the sky {n} blue?" for n in range(60)]
    scores = [decision.score for decision in aligner.score(model, tokenizer, usual)]
    calibrated = Aligner(recalibrate(aligner.artifact, {"mine": scores}, max_false_open=0.1))
    server = serve(loaded=LoadedModel(model, tokenizer, "tiny"), aligner=calibrated)
    assert "inferaligner_drift_distance" not in server.metrics()
    for prompt in usual[:30]:
        server.chat(prompt, max_tokens=1)
    before = server.metrics()
    for n in range(30):
        server.chat(f"Write {n} limericks, ho ho, about bread", max_tokens=1)
    after = server.metrics()
    assert before["inferaligner_drift_p_value"] > 0.01 > after["inferaligner_drift_p_value"]
    assert after["inferaligner_drift_distance"] > before["inferaligner_drift_distance"]
    assert before["inferaligner_open_rate_limit"] == pytest.approx(0.1)
    assert 0 <= after["inferaligner_recent_open_rate"] <= 1


def test_projections_are_those_of_the_library(server: Running) -> None:
    from inferaligner.method.activations import record_activations
    from inferaligner.method.vectors import unit

    body = {"messages": [{"role": "user", "content": PROMPTS[0]}]}
    told = server.client.post("/inferaligner/projection", json=body).json()
    assert told["layers"] == [0, 1, 2, 3] and len(told["harmful"]) == len(told["shares"]) == 5
    model = tiny_model()
    directions = unit(server.aligner.artifact.srv)

    def own(prompts: list[str]) -> Any:
        recorded = record_activations(model, encode_chats(server.tokenizer, prompts))
        return (recorded.at().float() * directions).sum(-1)

    # The scale is one line through two means, so differences between prompts must have one ratio a layer.
    others = [
        server.client.post(
            "/inferaligner/projection", json={"messages": [{"role": "user", "content": prompt}]}
        ).json()["prompt"]
        for prompt in PROMPTS[1:3]
    ]
    raw = own(PROMPTS[:3])
    for layer in range(4):
        one = (told["prompt"][layer] - others[0][layer]) / (raw[0, layer] - raw[1, layer]).item()
        two = (told["prompt"][layer] - others[1][layer]) / (raw[0, layer] - raw[2, layer]).item()
        assert one == pytest.approx(two, rel=0.02, abs=1e-3)
    error_of(server.client.post("/inferaligner/projection", json={"messages": []}), 400)
