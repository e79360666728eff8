"""The gate's cost on vLLM: the stock engine against the plugin, on the same prompts, in turns.

    python -m benchmarks.vllm_throughput --model builtin:smollm2-135m --batch 16 --repeats 10
    python -m benchmarks.vllm_throughput --model meta-llama/Llama-3.1-8B-Instruct --batch 64 \\
        --vllm max_model_len=4096

Two engines run side by side, one without the plugin. Each round sends the same batch to both: prompts that
keep the gate closed, prompts of which half open it, or prompts that all open it. The gate reads the layer at
2/5 of the depth, and every layer above it is steered: the most expensive plan that needs one pass. The
threshold is the median of the prompts' scores, and the vectors are so small that the answers hardly change.
The comparison covers seconds for the whole batch, time to the first token and time per token (p50 and p99
over the requests of a batch).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.rounds import machine, ratio_table, report_console, run_rounds, write_json
from inferaligner.aligner import Aligner
from inferaligner.artifact import AlignerArtifact, ModelRecord, Provenance
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.method.steering_settings import SteeringSettings
from inferaligner.models.anatomy import dissect
from inferaligner.models.fingerprint import fingerprint_model, fingerprint_tokenizer
from inferaligner.models.loading import load_model
from inferaligner.models.sources import resolve
from inferaligner.prompts.chat import encode_chats
from inferaligner.prompts.contrast import load_contrast_set
from inferaligner.vllm import engine_args, gate_of

SHARES = {"benign only": 0.0, "half open": 0.5, "all open": 1.0}
# Throughput of 0.99, 0.97 and 0.95 of stock vLLM's, as seconds.
TARGETS = {"benign only": 1 / 0.99, "half open": 1 / 0.97, "all open": 1 / 0.95}
STOCK = "stock"


def main() -> None:
    """Parses the command line, runs the rounds, prints the tables."""
    options = _options()
    with tempfile.TemporaryDirectory() as scratch:
        folder, closed, opened = _subject(options, Path(scratch) / "aligner")
        place = resolve(options.model).weights
        engines = {
            STOCK: _engine(place, options, {}),
            "plugin": _engine(place, options, engine_args(folder, async_scheduling=options.async_scheduling)),
        }
        console = report_console()
        console.print(
            f"{options.model}, {options.dtype}, {'eager' if options.eager else 'compiled'}, batch "
            f"{options.batch}, {options.new_tokens} new tokens, {options.repeats} rounds. "
            + ", ".join(f"{name} {value}" for name, value in machine().items())
        )
        for name in options.only or SHARES:
            share = SHARES[name]
            count = round(options.batch * share)
            prompts = _cycle(opened, count) + _cycle(closed, options.batch - count)
            _check(engines["plugin"], prompts, count)
            clock = time.process_time if options.clock == "cpu" else time.perf_counter
            arms = {
                arm: partial(_batch, llm, prompts, options.new_tokens, clock) for arm, llm in engines.items()
            }
            timings = run_rounds(
                arms, rounds=options.repeats, warmup=options.warmup, device=torch.device("cpu")
            )
            for metric in timings.seconds:
                targets = {"plugin": TARGETS[name]} if metric == "batch" else None
                title = f"{name}: {metric}"
                console.print(
                    ratio_table(title, timings, metric, STOCK, unit="ms", scale=1000.0, targets=targets)
                )
            if options.json:
                file = Path(options.json)
                place_of = file.with_name(f"{file.stem}-{name.replace(' ', '-')}{file.suffix}")
                write_json(place_of, vars(options), timings, dict.fromkeys(timings.seconds, STOCK))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="builtin:smollm2-135m", help="a model spec")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=10, help="measured rounds")
    parser.add_argument("--warmup", type=int, default=2, help="rounds before the measurement")
    parser.add_argument("--only", action="append", choices=list(SHARES), help="one kind of batch")
    parser.add_argument("--eager", action="store_true", help="no compilation")
    parser.add_argument("--async-scheduling", action="store_true")
    parser.add_argument(
        "--vllm", action="append", default=[], metavar="NAME=JSON", help="an argument of vllm.LLM"
    )
    parser.add_argument(
        "--clock",
        default="wall",
        choices=["wall", "cpu"],
        help="clock for the whole batch; cpu for a shared machine, together with "
        "VLLM_ENABLE_V1_MULTIPROCESSING=0, which keeps the engine in this process",
    )
    parser.add_argument("--json", metavar="FILE", help="write settings, machine, durations and ratios")
    options = parser.parse_args()
    if options.repeats < 2 or options.batch < 1 or options.new_tokens < 2:
        parser.error("at least 2 rounds, 1 request and 2 new tokens")
    return options


def _subject(options: argparse.Namespace, folder: Path) -> tuple[Path, list[list[int]], list[list[int]]]:
    """An aligner on disk, and prompts that do not open and that do open its gate."""
    loaded = load_model(options.model, dtype=options.dtype, device="cpu")
    anatomy = dissect(loaded.model)
    draw = torch.Generator().manual_seed(0)
    layer = anatomy.depth * 2 // 5
    weights = torch.randn(1, anatomy.width, generator=draw)
    gate = GuidanceGate("benchmark", (GateRead(layer),), weights / weights.norm(), 0.0)
    record = ModelRecord(
        spec=options.model,
        model=fingerprint_model(loaded.model),
        tokenizer=fingerprint_tokenizer(loaded.tokenizer),
    )
    vectors = 1e-3 * torch.randn(anatomy.depth, anatomy.width, generator=draw)

    def aligner(made: GuidanceGate) -> Aligner:
        return Aligner(
            AlignerArtifact(
                gate=made,
                steering=SteeringSettings(layers=tuple(range(layer, anatomy.depth)), strength=1.0),
                srv=vectors,
                ssv=vectors.clone(),
                provenance=Provenance(
                    target=record, aligned=record, prompts={}, versions={}, created="benchmark"
                ),
                calibration={},
            )
        )

    texts = [sample.prompt for sample in load_contrast_set().benign][: 4 * max(options.batch, 16)]
    scores = [decision.score for decision in aligner(gate).score(loaded.model, loaded.tokenizer, texts)]
    ranked = [text for _, text in sorted(zip(scores, texts, strict=True))]
    quarter = len(ranked) // 4  # without prompts near the threshold: bfloat16 kernels round differently
    aligner(gate.with_bias(-sorted(scores)[len(scores) // 2])).save_pretrained(folder)
    closed = encode_chats(loaded.tokenizer, ranked[:quarter])
    return folder, closed, encode_chats(loaded.tokenizer, ranked[-quarter:])


def _engine(place: str, options: argparse.Namespace, plugin: Mapping[str, Any]) -> Any:
    from vllm import LLM

    chosen = dict(each.split("=", 1) for each in options.vllm)
    arguments = {
        "max_model_len": 512,
        "max_num_seqs": options.batch,
        "kv_cache_memory_bytes": 256 << 20,
        "enable_prefix_caching": True,
        "disable_log_stats": False,
        "async_scheduling": options.async_scheduling,
        **{name: json.loads(value) for name, value in chosen.items()},
    }
    return LLM(place, dtype=options.dtype, enforce_eager=options.eager, **{**arguments, **plugin})


def _cycle(prompts: list[list[int]], count: int) -> list[list[int]]:
    return [prompts[number % len(prompts)] for number in range(count)]


def _run(llm: Any, prompts: list[list[int]], length: int) -> list[Any]:
    from vllm import SamplingParams

    parameters = SamplingParams(max_tokens=length, temperature=0, ignore_eos=True)
    return list(llm.generate([{"prompt_token_ids": ids} for ids in prompts], parameters, use_tqdm=False))


def _batch(
    llm: Any, prompts: list[list[int]], length: int, clock: Callable[[], float]
) -> Mapping[str, float]:
    begin = clock()
    outputs = _run(llm, prompts, length)
    seconds = clock() - begin
    if clock is not time.perf_counter:
        return {"batch": seconds}  # vLLM's own times are by the wall
    first = torch.tensor([output.metrics.first_token_latency for output in outputs])
    each = torch.tensor(
        [(output.metrics.last_token_ts - output.metrics.first_token_ts) / (length - 1) for output in outputs]
    )
    return {
        "batch": seconds,
        "first token p50": float(first.quantile(0.5)),
        "first token p99": float(first.quantile(0.99)),
        "per token p50": float(each.quantile(0.5)),
        "per token p99": float(each.quantile(0.99)),
    }


def _check(llm: Any, prompts: list[list[int]], expected: int) -> None:
    """Decisions as planned: else the timing is of something else."""
    opened = sum(gate_of(output)["open"] for output in _run(llm, prompts, 2))
    if opened != expected:
        raise SystemExit(f"{opened} of {len(prompts)} requests opened, {expected} were to.")


if __name__ == "__main__":
    main()
