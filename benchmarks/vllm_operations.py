"""The gate's cost in one decoding step of vLLM, measured without vLLM: bookkeeping and operations.

    python -m benchmarks.vllm_operations --width 576 --layers 18 --batch 16

It measures processor time of one thread, which other users of the machine hardly affect. Compare it with the
time of an engine's step (`vllm_throughput.py`, time per token). These are the operations of an eager model; a
compiled model has the same bookkeeping and reads, and adds the vector in its own kernels.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.vllm import ops as ops  # registers torch.ops.inferaligner
from inferaligner.vllm.device_buffers import RowBuffers
from inferaligner.vllm.protocol import Order, StepOrders
from inferaligner.vllm.slots import Slots

_PROMPT = 40


def main() -> None:
    """Prints microseconds a step for a batch that is closed, half open and open."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--layers", type=int, default=18, help="steered layers")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=500)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, share in {"closed": 0.0, "half open": 0.5, "open": 1.0}.items():
        parts = _step(options, round(options.batch * share))
        text = ", ".join(f"{part} {microseconds:.0f}" for part, microseconds in parts.items())
        print(f"{name}: {sum(parts.values()):.0f} µs a step ({text})")


def _step(options: argparse.Namespace, opened: int) -> dict[str, float]:
    gate = GuidanceGate("benchmark", (GateRead(0),), torch.randn(1, options.width), 0.0)
    rows = RowBuffers(gate, options.batch, 8 * options.batch, torch.device("cpu"))
    slots = Slots(rows, steers=True)
    names = [str(number) for number in range(options.batch)]
    orders = {name: Order(n, _PROMPT, n < opened, _PROMPT - 1) for n, name in enumerate(names)}
    slots.begin_step([], StepOrders(orders))
    stream = torch.randn(options.batch, options.width, dtype=torch.bfloat16)
    addition = torch.zeros(options.width, dtype=torch.bfloat16)
    run, counts = torch.ops.inferaligner, rows.graph_counts
    taken: dict[str, list[float]] = {"bookkeeping": [], "operations": []}
    for _ in range(options.repeats):
        begin = time.process_time()
        slots.begin_step([], StepOrders())
        slots.plan_batch(names, [_PROMPT + 20] * options.batch, [1] * options.batch)
        planned = time.process_time()
        run.read_gate(
            stream, stream, gate.weights, [0], [0], counts, rows.read_tokens, rows.read_slots, rows.partial
        )
        run.decide(
            rows.partial,
            gate.bias,
            rows.decide_row,
            counts,
            rows.read_slots,
            rows.score,
            rows.open,
            rows.slot_of_token,
            rows.steered,
            rows.steer_tokens,
        )
        for _ in range(options.layers):
            run.steer(stream, addition, counts, rows.steered, rows.steer_tokens)
        done = time.process_time()
        slots.end_step(options.batch)
        taken["bookkeeping"].append(planned - begin + time.process_time() - done)
        taken["operations"].append(done - planned)
    return {part: 1e6 * statistics.median(seconds) for part, seconds in taken.items()}


if __name__ == "__main__":
    main()
