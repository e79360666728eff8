"""A load test of the embedded server: many concurrent streams, each answer compared with the one of the
prompt alone.

    python -m benchmarks.server_load --aligner DIR --work OUT alone     # resumes; one prompt at a time
    python -m benchmarks.server_load --aligner DIR --work OUT load      # server and plain batched `generate`

    python -m benchmarks.server_load --work OUT small                   # random weights, for slow machines

Requests are drawn with a fixed seed from the test part of the shipped contrast set, which has harmful
prompts, so some answers are steered. Only digests of answers are stored. `alone` runs the library's guard
around the model's own `generate`, one prompt at a time. It also records the smallest lead of a chosen token
over the next best one: where the lead is nearly 0, rounding decides, and a different answer is no sign of
mixed-up rows.

Throughput is in answer tokens per second of the wall clock and, because other programs may use the machine,
per second of processor time of the computing process. Plain `generate` gets the same prompts sorted by
length, in batches as wide as the server's, and all answers have the same length: this is its best case, as
no row waits for another.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from inferaligner.aligner import Aligner
from inferaligner.models.generation import generate_batches
from inferaligner.models.loading import load_model
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.contrast import load_contrast_set


def requests_of(count: int, unique: int, seed: int) -> list[str]:
    """`count` prompts drawn from `unique` different ones, each as often as the others, in random order."""
    prompts = [prompt.text for prompt in load_contrast_set().part("test", wrapped=False)]
    draw = random.Random(seed)
    draw.shuffle(prompts)
    drawn = [prompts[at % min(unique, len(prompts))] for at in range(count)]
    draw.shuffle(drawn)
    return drawn


def small(options: argparse.Namespace) -> None:
    """Writes `small/` and `small-aligner/`: random weights with SmolLM2's tokenizer, and a gate that opens
    on half of the prompts. Speed does not depend on the values of weights, and mixed-up rows are detected
    too."""
    from tests.support.tiny_aligner import tiny_aligner
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_model("builtin:smollm2-135m", dtype="float32", device="cpu").tokenizer
    torch.manual_seed(options.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=10,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.08,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model: Any = LlamaForCausalLM(config).eval()  # type: ignore[no-untyped-call]
    model.save_pretrained(options.work / "small")
    tokenizer.save_pretrained(options.work / "small")
    prompts = sorted(set(requests_of(options.requests, options.unique, options.seed)))
    aligner = tiny_aligner(model, tokenizer, prompts=prompts, layers=(3, 4, 5))
    aligner.save_pretrained(options.work / "small-aligner")


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def alone(options: argparse.Namespace) -> None:
    """Computes the answers that are missing in `alone.jsonl`."""
    file = options.work / "alone.jsonl"
    known = {json.loads(line)["prompt"] for line in file.open(encoding="utf-8")} if file.exists() else set()
    prompts = requests_of(options.requests, options.unique, options.seed)
    todo = [prompt for prompt in dict.fromkeys(prompts) if digest(prompt) not in known]
    if not todo:
        return
    loaded = load_model(options.model, dtype=options.dtype, device="cpu")
    aligner = Aligner.from_pretrained(options.aligner)
    began = time.monotonic()
    with aligner.apply(loaded.model, loaded.tokenizer) as guard, file.open("a", encoding="utf-8") as out:
        for number, prompt in enumerate(todo):
            if time.monotonic() - began > options.minutes * 60:
                print(f"{len(todo) - number} left; run it again", flush=True)
                return
            (ids,) = encode_chats(loaded.tokenizer, [prompt])
            answer = loaded.model.generate(
                torch.tensor([ids]),
                do_sample=False,
                max_new_tokens=options.tokens,
                min_new_tokens=options.tokens,
                pad_token_id=loaded.tokenizer.pad_token_id,
                output_scores=True,
                return_dict_in_generate=True,
            )
            best = torch.stack(answer.scores).float().topk(2, dim=-1).values[:, 0]
            (decision,) = guard.decisions
            text = loaded.tokenizer.decode(answer.sequences[0, len(ids) :], skip_special_tokens=True)
            row = {
                "prompt": digest(prompt),
                "answer": digest(str(text)),
                "open": decision.open,
                "score": decision.score,
                "lead": float((best[:, 0] - best[:, 1]).min()),
            }
            out.write(json.dumps(row) + "\n")
            out.flush()
            print(f"\r{number + 1}/{len(todo)}", end="", flush=True)


def baseline(options: argparse.Namespace, prompts: Sequence[str]) -> dict[str, float]:
    """Plain `generate` under the library's guard: answer tokens per second."""
    loaded = load_model(options.model, dtype=options.dtype, device="cpu")
    aligner = Aligner.from_pretrained(options.aligner)
    with aligner.apply(loaded.model, loaded.tokenizer):
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = sum(
            batch.tokens.numel()
            for batch in generate_batches(
                loaded.model,
                loaded.tokenizer,
                prompts,
                max_new_tokens=options.tokens,
                batch_size=options.streams,
                min_new_tokens=options.tokens,
            )
        )
    return {
        "tokens": tokens,
        "per_second": tokens / (time.perf_counter() - wall),
        "per_cpu_second": tokens / (time.process_time() - cpu),
    }


async def one(client: httpx.AsyncClient, prompt: str, tokens: int) -> dict[str, Any]:
    """Reads one stream to its end."""
    body = {
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": tokens,
        "min_tokens": tokens,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    began, first, text, report, used = time.perf_counter(), None, "", {}, 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            return {"error": f"status {answer.status_code}"}
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if "error" in chunk:
                return {"error": chunk["error"]["message"]}
            for choice in chunk["choices"]:
                piece = choice["delta"].get("content")
                if piece and first is None:
                    first = time.perf_counter() - began
                text += piece or ""
            report = chunk.get("inferaligner") or report
            used = (chunk.get("usage") or {}).get("completion_tokens", used)
    return {
        "prompt": digest(prompt),
        "answer": digest(text),
        "open": report["open"],
        "score": report["score"],
        "tokens": used,
        "first": first,
        "seconds": time.perf_counter() - began,
    }


async def clients(url: str, prompts: Sequence[str], streams: int, tokens: int) -> list[dict[str, Any]]:
    """Sends all requests, `streams` of them at any time."""
    gate = asyncio.Semaphore(streams)
    limits = httpx.Limits(max_connections=streams)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def run(prompt: str) -> dict[str, Any]:
            async with gate:
                try:
                    return await one(client, prompt, tokens)
                except httpx.HTTPError as error:
                    return {"error": repr(error)}

        return list(await asyncio.gather(*map(run, prompts)))


def processor_seconds(pid: int) -> float:
    """Processor time of a process and its threads so far (Linux)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def served(
    options: argparse.Namespace, prompts: Sequence[str]
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Starts the server as users do, and sends it the requests."""
    command = [sys.executable, "-m", "inferaligner.cli.main", "serve", options.model]
    command += ["--aligner", str(options.aligner), "--engine", "transformers", "--dtype", options.dtype]
    command += ["--port", str(options.port), "--max-rows", str(options.streams), "--device", "cpu"]
    url = f"http://127.0.0.1:{options.port}"
    with subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": str(options.threads)}) as server:
        try:
            for _ in range(600):
                try:
                    httpx.get(f"{url}/health").raise_for_status()
                    break
                except httpx.HTTPError:
                    if server.poll() is not None:
                        sys.exit("the server did not start")
                    time.sleep(0.5)
            asyncio.run(clients(url, prompts[:2], 2, options.tokens))  # warm-up
            wall, cpu = time.perf_counter(), processor_seconds(server.pid)
            answers = asyncio.run(clients(url, prompts, options.streams, options.tokens))
            wall, cpu = time.perf_counter() - wall, processor_seconds(server.pid) - cpu
        finally:
            server.terminate()
        code = server.wait(120)
    tokens = sum(answer.get("tokens", 0) for answer in answers)
    figures = {"tokens": tokens, "per_second": tokens / wall, "per_cpu_second": tokens / cpu}
    return answers, {**figures, "exit_code": code, "wall_seconds": wall}


def load(options: argparse.Namespace) -> None:
    """Measures both throughputs, compares the answers; prints and writes `load.json`."""
    prompts = requests_of(options.requests, options.unique, options.seed)
    wanted = {
        row["prompt"]: row for row in map(json.loads, (options.work / "alone.jsonl").open(encoding="utf-8"))
    }
    missing = {digest(prompt) for prompt in prompts} - set(wanted)
    if missing:
        sys.exit(f"alone.jsonl lacks {len(missing)} prompts; run `alone` until it has all")
    answers, server = served(options, prompts)
    plain = baseline(options, prompts)
    fine = [answer for answer in answers if "error" not in answer]
    other = [answer for answer in fine if wanted[answer["prompt"]]["answer"] != answer["answer"]]
    latencies = sorted(answer["seconds"] for answer in fine)
    firsts = sorted(answer["first"] or 0 for answer in fine)
    result = {
        "requests": len(answers),
        "streams": options.streams,
        "answer_tokens": options.tokens,
        "model": options.model,
        "dtype": options.dtype,
        "machine": platform.processor() or platform.machine(),
        "threads": options.threads,
        "errors": [answer["error"] for answer in answers if "error" in answer],
        "open": sum(answer["open"] for answer in fine),
        "same_answer": len(fine) - len(other),
        "other_answers": [
            {"lead_alone": wanted[answer["prompt"]]["lead"], "open": answer["open"]} for answer in other
        ],
        "other_decisions": sum(answer["open"] != wanted[answer["prompt"]]["open"] for answer in fine),
        "largest_score_difference": max(
            abs(answer["score"] - wanted[answer["prompt"]]["score"]) for answer in fine
        ),
        "server": server,
        "plain_generate": plain,
        "ratio_wall": server["per_second"] / plain["per_second"],
        "ratio_cpu": server["per_cpu_second"] / plain["per_cpu_second"],
        "seconds_median": latencies[len(latencies) // 2],
        "seconds_p95": latencies[int(len(latencies) * 0.95)],
        "first_token_median": firsts[len(firsts) // 2],
    }
    (options.work / "load.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=["alone", "load", "small"])
    parser.add_argument("--aligner", type=Path)
    parser.add_argument("--work", type=Path, required=True, help="folder for results that later runs use")
    parser.add_argument("--model", default="builtin:smollm2-135m")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--requests", type=int, default=500)
    parser.add_argument("--unique", type=int, default=60, help="different prompts among the requests")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=16, help="tokens of every answer")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--minutes", type=float, default=8, help="time limit of `alone`; a later run goes on")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    {"alone": alone, "load": load, "small": small}[options.what](options)


if __name__ == "__main__":
    main()
