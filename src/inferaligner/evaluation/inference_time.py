"""What a method costs: time to the first token and seconds per 1,000 tokens, open and closed, in one run.

One prompt at a time, all methods in turn within each round, so that a machine that slows down slows all of
them; the median of the rounds counts. Every answer has exactly the same number of tokens. The method
decides by itself where it can (`gated`), as it would in service; an open prompt costs a canned refusal its
gate and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from inferaligner.evaluation.comparison import median_interval
from inferaligner.evaluation.methods.method import Method
from inferaligner.evaluation.metrics import HARMFUL_KINDS, ResultRow, row
from inferaligner.evaluation.records_file import Record
from inferaligner.fit.progress import Stages
from inferaligner.models.generation import generate_answers
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.images import Prompt

SUITE = "inference time"


@dataclass(frozen=True)
class Timing:
    """Seconds of one prompt under one method: to the first token, and for `tokens` tokens."""

    method: str
    state: str  # "open", "closed", or "any" for methods without a gate
    first: float
    whole: float
    tokens: int


def timed_prompts(
    records: Iterable[Record], asked: Mapping[str, Sequence[Prompt]], each: int
) -> dict[str, list[Prompt]]:
    """Up to `each` prompts that open the first gate found, and as many that do not, shortest rows first.

    `asked` are the prompts of each suite, pictures and all; records have their rows in it.
    """
    chosen: dict[str, list[Prompt]] = {"open": [], "closed": []}
    gate: str | None = None
    for record in records:
        if record.get("score") is None or record["task"] != "reply":
            continue
        gate = gate or record["method"]
        if record["method"] != gate:
            continue
        state = "open" if record["open"] else "closed"
        # Harmful prompts that open and harmless ones that do not: what each state is for.
        if (record["kind"] in HARMFUL_KINDS) == record["open"] and len(chosen[state]) < each:
            chosen[state].append(asked[record["suite"]][record["row"]])
    return chosen


def measure(
    methods: Sequence[Method],
    prompts: Mapping[str, Sequence[Prompt]],
    *,
    tokens: int,
    rounds: int,
    tell: Stages,
) -> list[Timing]:
    """Times every method on every prompt, `rounds` times."""
    total = rounds * len(methods) * sum(map(len, prompts.values()))
    found: list[Timing] = []
    with tell.stage("inference time", total) as advance:
        for turn in range(rounds):
            for state, asked in prompts.items():
                for prompt in asked:
                    # Another order each time: who goes first pays for cold caches.
                    shift = turn % len(methods)
                    for method in [*methods[shift:], *methods[:shift]]:
                        told = "any" if method.gate is None else state
                        found.append(_time(method, prompt, told, tokens))
                        advance(1)
    return found


def time_rows(timings: Sequence[Timing]) -> list[ResultRow]:
    """Medians per method and state, with bootstrap intervals."""
    by: dict[tuple[str, str], list[Timing]] = {}
    for timing in timings:
        by.setdefault((timing.method, timing.state), []).append(timing)
    found: list[ResultRow] = []
    for (method, state), some in by.items():
        suite = SUITE if state == "any" else f"{SUITE}, {state}"
        for metric, values in (
            ("seconds per 1,000 tokens", [1000 * t.whole / t.tokens for t in some]),
            ("seconds to the first token", [t.first for t in some]),
        ):
            middle, low, high = median_interval(values)
            figures = {"value": middle, "low": low, "high": high, "n": len(values)}
            found.append(row(method, suite, metric, figures, None))
    return found


def _time(method: Method, prompt: Prompt, state: str, tokens: int) -> Timing:
    loaded = method.model()
    text = method.rewrite(prompt)

    def once(length: int) -> float:
        begun = time.perf_counter()
        if method.canned is not None and state == "open":
            decisions = method.decide([prompt])
            if decisions is not None and decisions[0].open:
                return time.perf_counter() - begun
        context = method.gated()
        if context is None:
            decisions = method.decide([prompt])
            context = method.acting() if decisions is None or decisions[0].open else None
        if context is None:
            _answer(loaded, text, length, method.context.system)
        else:
            with context:
                _answer(loaded, text, length, method.context.system)
        if loaded.model.device.type == "cuda":
            torch.cuda.synchronize(loaded.model.device)
        return time.perf_counter() - begun

    return Timing(method.name, state, once(1), once(tokens), tokens)


def _answer(loaded: LoadedModel, prompt: Prompt, length: int, system: str | None) -> None:
    stream = generate_answers(
        loaded.model,
        loaded.reader,
        [prompt],
        max_new_tokens=length,
        system=system,
        min_new_tokens=length,  # no end of turn before: every answer is as long
    )
    for _ in stream:
        pass
