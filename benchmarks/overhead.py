"""The cost of a guard: prefill and decoding of the bare model, with the gate closed, open, and open for half;
and with a monitor that reads every token and opens no row, or every row at its first token.

    python -m benchmarks.overhead --model builtin:smollm2-135m --batch 8 --repeats 30

The arms are the same `model.generate(...)` on the same prompts. Decisions are forced by the gate's bias; the
gate reads and computes its score as always. Every layer above the gate is steered, which is the most
expensive plan that still needs only one pass.

Three metrics: `prefill`, one forward call over the prompts with a KV cache; `first token`, from calling
generate to its first token; `decode`, from the first token to the last.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from benchmarks.rounds import Arm, Stopwatch, machine, ratio_table, report_console, run_rounds, write_json
from benchmarks.subjects import add_subject_options, check_subject_options, load_subject
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.models.anatomy import dissect
from inferaligner.steering.guard import Guard
from inferaligner.steering.plan import SteeringPlan

BARE, CLOSED, OPEN, MIXED = "bare", "gate closed", "gate open", "half open"
WATCHED, LATE = "closed, monitor", "monitor opened"
TARGETS = {
    "decode": {CLOSED: 1.01, OPEN: 1.02, MIXED: 1.02, WATCHED: 1.02, LATE: 1.02},
    "first token": {CLOSED: 1.01, OPEN: 1.01, MIXED: 1.01, WATCHED: 1.01, LATE: 1.01},
    "prefill": {CLOSED: 1.01, OPEN: 1.01, MIXED: 1.01, WATCHED: 1.01, LATE: 1.01},
}
_HUGE = 1e9  # outweighs any score; the gate refuses infinity
_WINDOW = 16  # of the monitor


class TokenTimes(StoppingCriteria):
    """Never stops; notes when the first and the latest token were there."""

    def __init__(self, watch: Stopwatch) -> None:
        self._watch = watch
        self.first: object = None
        self.last: object = None

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Any:
        self.last = self._watch.mark()
        if self.first is None:
            self.first = self.last
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Work:
    """The prompts `[rows, tokens]` and how many tokens follow them."""

    model: Any
    watch: Stopwatch
    ids: Tensor
    mask: Tensor
    new_tokens: int
    settings: Mapping[str, Any] = field(default_factory=dict)  # more arguments of `generate`

    def generate(self) -> tuple[Tensor, dict[str, float]]:
        """The tokens, and seconds to the first token and from there on."""
        times = TokenTimes(self.watch)
        begin = self.watch.mark()
        tokens = self.model.generate(
            input_ids=self.ids,
            attention_mask=self.mask,
            do_sample=False,
            max_new_tokens=self.new_tokens,
            min_new_tokens=self.new_tokens,
            pad_token_id=0,
            stopping_criteria=StoppingCriteriaList([times]),
            **self.settings,
        )
        first, rest = self.watch.seconds(begin, times.first), self.watch.seconds(times.first, times.last)
        return tokens, {"first token": first, "decode": rest}

    @torch.no_grad()
    def prefill(self) -> float:
        """Seconds of one forward call over the prompts."""
        begin = self.watch.mark()
        self.model(input_ids=self.ids, attention_mask=self.mask, use_cache=True, logits_to_keep=1)
        return self.watch.seconds(begin, self.watch.mark())


def main() -> None:
    """Parses the command line, runs the rounds, prints the tables."""
    options = parse_options()
    model, _ = load_subject(options)
    work = make_work(model, options)
    plans, expected_open = forced_plans(work, make_plan(model, options))
    try:
        check_arms(work, plans, expected_open)
    except NotComparableError as error:
        raise SystemExit(str(error)) from None
    arms = overhead_arms(work, plans)
    timings = run_rounds(arms, rounds=options.repeats, warmup=options.warmup, device=work.watch.device)

    plan = plans[CLOSED]
    console = report_console()
    console.print(
        f"{options.model}: {dissect(model).depth} layers, {options.dtype}, {options.batch} rows of "
        f"{options.prompt_tokens} prompt tokens, {options.new_tokens} new ones; gate after layers "
        f"{list(plan.gate.layers)}, steered {plan.layers[0]} to {plan.layers[-1]}, {plan.positions}. "
        f"{options.repeats} rounds, {options.clock} clock. "
        + ", ".join(f"{name} {value}" for name, value in machine().items())
    )
    metrics = {"decode": ("ms a token", 1000 / (options.new_tokens - 1)), "prefill": ("ms", 1000.0)}
    for metric, (unit, scale) in {**metrics, "first token": ("ms", 1000.0)}.items():
        console.print(
            ratio_table(metric, timings, metric, BARE, unit=unit, scale=scale, targets=TARGETS[metric])
        )
    if options.json:
        write_json(Path(options.json), vars(options), timings, dict.fromkeys(timings.seconds, BARE))


def overhead_arms(work: Work, plans: Mapping[str, SteeringPlan]) -> dict[str, Arm]:
    """The bare model, and the model under each plan."""

    def arm(plan: SteeringPlan | None) -> Arm:
        def run() -> Mapping[str, float]:
            # Putting the hooks on is done once per application, not per prompt: it is not timed.
            with contextlib.nullcontext() if plan is None else Guard(work.model, plan):
                prefill = work.prefill()
                return {"prefill": prefill, **work.generate()[1]}

        return run

    return {BARE: arm(None), **{name: arm(plan) for name, plan in plans.items()}}


def parse_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings of a measurement, from the command line or from `arguments`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_subject_options(parser)
    parser.add_argument("--batch", type=int, default=4, help="rows (2 or more, for a mixed batch)")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--gate-layer", type=int, help="the last one it reads (default: 2/5 of the depth)")
    parser.add_argument("--gate-reads", type=int, default=1, help="layers that it reads, up to --gate-layer")
    parser.add_argument("--steered", type=int, help="layers, from the gate's on (default: all of those)")
    parser.add_argument("--positions", choices=["from_gate", "all"], default="from_gate")
    options = parser.parse_args(arguments)
    check_subject_options(parser, options)
    if options.new_tokens < 2:
        parser.error("--new-tokens: at least 2, the first belongs to the prefill")
    return options


def make_work(model: Any, options: argparse.Namespace) -> Work:
    """Random prompts of different lengths, padded on the left."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.get_input_embeddings().weight.shape[0]
    shape = (options.batch, options.prompt_tokens)
    ids = torch.randint(10, vocabulary, shape, generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, options.batch):  # left padding of different lengths, as in real batches
        padding = min(row * options.prompt_tokens // (4 * options.batch), options.prompt_tokens - 2)
        mask[row, :padding] = 0
    device = torch.device(options.device)
    return Work(model, Stopwatch(device, options.clock), ids.to(device), mask.to(device), options.new_tokens)


def make_plan(model: Any, options: argparse.Namespace) -> SteeringPlan:
    """A random gate, and random vectors for the layers above it."""
    anatomy = dissect(model)
    gate_layer = anatomy.depth * 2 // 5 if options.gate_layer is None else options.gate_layer
    first_read = max(0, gate_layer - options.gate_reads + 1)
    reads = tuple(GateRead(layer) for layer in range(first_read, gate_layer + 1))
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(len(reads), anatomy.width, generator=generator)
    steered = range(gate_layer, anatomy.depth)[: options.steered]
    # Small vectors do not change the answers: the benchmark times the addition, not its effect.
    additions = {layer: 1e-3 * torch.randn(anatomy.width, generator=generator) for layer in steered}
    gate = GuidanceGate("benchmark", reads, weights / weights.norm(dim=1, keepdim=True), 0.0)
    return SteeringPlan(gate, additions, options.positions)


def forced_plans(work: Work, plan: SteeringPlan) -> tuple[dict[str, SteeringPlan], dict[str, int]]:
    """The plan with the bias that makes each arm's decisions, and how many rows each must open."""
    with Guard(work.model, plan, "never") as shadow:
        work.prefill()
        scores = sorted(decision.score for decision in shadow.decisions)
    middle = len(scores) // 2
    bias, rows = {CLOSED: -_HUGE, OPEN: _HUGE}, {CLOSED: 0, OPEN: len(scores)}
    watched = {WATCHED: -_HUGE, LATE: _HUGE}
    if len(scores) > 1:
        bias[MIXED], rows[MIXED] = -(scores[middle - 1] + scores[middle]) / 2, len(scores) - middle
    plans = {
        arm: SteeringPlan(plan.gate.with_bias(value), plan.additions, plan.positions)
        for arm, value in bias.items()
    }
    first = plan.layers[0]
    for arm, value in watched.items():
        # With the prompt's gate shut, so that all there is to pay for is the monitor's.
        monitor = AnswerMonitor("benchmark", first, _WINDOW, plan.gate.weights[0], 0.0, value)
        plans[arm] = replace(plans[CLOSED], monitor=monitor)
        rows[arm] = 0 if arm == WATCHED else len(scores)
    return plans, rows


class NotComparableError(Exception):
    """The arms do not have the named decisions, so their durations cannot be compared."""


def check_arms(work: Work, plans: Mapping[str, SteeringPlan], expected_open: Mapping[str, int]) -> None:
    """Raises `NotComparableError` unless decisions are as forced, and closed rows have the bare model's
    tokens."""
    bare, _ = work.generate()
    for name, plan in plans.items():
        with Guard(work.model, plan) as guard:
            tokens, _ = work.generate()
            opened = [decision.open for decision in guard.decisions]
        if sum(opened) != expected_open[name]:
            raise NotComparableError(
                f"{name}: {sum(opened)} rows opened; expected {expected_open[name]} open rows."
            )
        closed = ~torch.tensor(opened, device=tokens.device)
        if not torch.equal(tokens[closed], bare[closed]):
            raise NotComparableError(f"{name}: a closed row differs from the bare model's answer.")


if __name__ == "__main__":
    main()
