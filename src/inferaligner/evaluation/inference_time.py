"""Inference time of methods: seconds to the first token and per 1,000 tokens, for open and closed prompts.

One prompt at a time, all methods in turn within each round, so that a machine that slows down slows all of
them; the median over the rounds is reported. Every answer has exactly the same number of tokens. A method
with a gate decides by itself (`gated`), as it would in service; for an open prompt, a canned refusal costs
the gate alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from inferaligner.evaluation.methods.method import Method
from inferaligner.evaluation.metrics import HARMFUL_KINDS, ResultRow, row
from inferaligner.evaluation.paired_statistics import median_interval
from inferaligner.evaluation.records_file import Record
from inferaligner.fit.progress import Progress
from inferaligner.models.generation import generate_answers
from inferaligner.models.loading import LoadedModel
from inferaligner.prompts.images import Prompt

SUITE = "inference time"


@dataclass(frozen=True)
class TimingSettings:
    """`prompts` open and as many closed prompts, `rounds` times, with answers of exactly `tokens` tokens."""

    prompts: int = 4
    tokens: int = 48
    rounds: int = 3


QUICK = TimingSettings(prompts=2, tokens=16, rounds=2)
"""The settings of `evaluate --quick`."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one prompt under one method: to the first token, and for `tokens` tokens."""

    method: str
    state: str  # "open", "closed", or "any" for methods without a gate
    first: float
    whole: float
    tokens: int


def timed_prompts(
    records: Iterable[Record], prompts: Mapping[str, Sequence[Prompt]], each: int
) -> dict[str, list[Prompt]]:
    """Up to `each` harmful prompts that open the first gate in the records, and as many harmless closed ones.

    `prompts` are the prompts of each suite by its name, pictures included, in the order of the rows.
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
        # Harmful prompts that open and harmless prompts that stay closed: the usual case of each state.
        if (record["kind"] in HARMFUL_KINDS) == record["open"] and len(chosen[state]) < each:
            chosen[state].append(prompts[record["suite"]][record["row"]])
    return chosen


def measure(
    methods: Sequence[Method],
    prompts: Mapping[str, Sequence[Prompt]],
    settings: TimingSettings,
    progress: Progress,
) -> list[Timing]:
    """Times every method on every prompt; `prompts` are given by the state of the gate."""
    total = settings.rounds * len(methods) * sum(map(len, prompts.values()))
    timings: list[Timing] = []
    with progress.stage("inference time", total) as advance:
        for turn in range(settings.rounds):
            for state, of_state in prompts.items():
                for prompt in of_state:
                    # Another order each time: the first method pays for cold caches.
                    shift = turn % len(methods)
                    for method in [*methods[shift:], *methods[:shift]]:
                        reported = "any" if method.gate is None else state
                        timings.append(_time(method, prompt, reported, settings.tokens))
                        advance(1)
    return timings


def timing_rows(timings: Sequence[Timing]) -> list[ResultRow]:
    """Median seconds per 1,000 tokens and to the first token, by method and gate state."""
    by: dict[tuple[str, str], list[Timing]] = {}
    for timing in timings:
        by.setdefault((timing.method, timing.state), []).append(timing)
    rows: list[ResultRow] = []
    for (method, state), some in by.items():
        suite = SUITE if state == "any" else f"{SUITE}, {state}"
        for metric, values in (
            ("seconds per 1,000 tokens", [1000 * t.whole / t.tokens for t in some]),
            ("seconds to the first token", [t.first for t in some]),
        ):
            middle, low, high = median_interval(values)
            figures = {"value": middle, "low": low, "high": high, "n": len(values)}
            rows.append(row(method, suite, metric, figures, None))
    return rows


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
        min_new_tokens=length,  # no end of turn before that, so that every answer is as long
    )
    for _ in stream:
        pass
