"""The start-up self-test: the hooks act in the very graphs that will serve.

It runs vLLM's own dummy batch: rows of a closed slot must leave the hidden states bit for bit as they were,
rows of an open slot must change every one of them, the gate must read and decide, and so must a monitor. A
graph that was compiled or captured without the operations cannot pass.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor

from inferaligner.errors import SteeringError
from inferaligner.method.decision import opens
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.vllm.device_buffers import RowBuffers

_TOKENS = 8


def self_test(runner: Any, rows: RowBuffers, *, steers: bool) -> None:
    """Raises `SteeringError` unless the gate acts on this worker's model."""
    tokens = min(_TOKENS, rows.slot_of_token.shape[0])
    plain = _run(runner, tokens)
    if not torch.equal(plain, _run(runner, tokens)):
        raise _failed("the same batch gave two results, so it cannot be told what steering changes")

    _check_gate(runner, rows, tokens)
    if rows.monitor is not None:
        _check_monitor(runner, rows, rows.monitor, tokens)
    if steers:
        rows.begin(0, open_now=False)
        if not torch.equal(plain, _run_steered(runner, rows, tokens)):
            raise _failed("rows whose gate is closed were changed")
        rows.begin(0, open_now=True)
        changed = (_run_steered(runner, rows, tokens) != plain).any(-1)
        if not changed.all():
            raise _failed(f"{int((~changed).sum())} of {tokens} rows whose gate is open were not steered")
    rows.begin(0, open_now=False)


def _check_gate(runner: Any, rows: RowBuffers, tokens: int) -> None:
    rows.begin(0, open_now=True, kind="template" if rows.ends is None else "begun")
    reads = [[(number % tokens, 0)] for number in range(rows.read_rows)]
    rows.load(reads, [0], [], tokens)
    try:
        _run(runner, tokens)
    finally:
        rows.clear()
    parts, score = rows.partial[0].cpu(), float(rows.score[0])
    if not torch.isfinite(parts).all():
        raise _failed(
            f"{int((~torch.isfinite(parts)).sum())} of {len(parts)} reads of the gate gave no finite number"
        )
    own = len(rows.gate.reads)
    expected, end = float(parts[:own].sum()) + rows.gate.bias, float(parts[own:].sum())
    if rows.ends is not None and expected <= 0 < end:
        expected = end
    if abs(score - expected) > 1e-3 * (1 + abs(expected)) or bool(rows.open[0]) != opens(score):
        raise _failed(f"the gate decided {bool(rows.open[0])} at score {score}; expected score {expected}")


def _check_monitor(runner: Any, rows: RowBuffers, monitor: AnswerMonitor, tokens: int) -> None:
    rows.begin(0, open_now=False)
    rows.token_score[0] = torch.nan
    rows.load([[] for _ in rows.gate.offsets], [], [], tokens, [(tokens - 1, 0, 1)])
    try:
        _run(runner, tokens)
    finally:
        rows.clear()
    score = float(rows.token_score[0])
    opened = opens(score / monitor.window + monitor.bias)
    if not math.isfinite(score) or (bool(rows.over[0]), bool(rows.open[0])) != (opened, opened):
        raise _failed(f"the monitor read a token at score {score} and opened {bool(rows.open[0])}")


def _run_steered(runner: Any, rows: RowBuffers, tokens: int) -> Tensor:
    rows.load([[] for _ in rows.gate.offsets], [], [(0, tokens, 0)], tokens)
    try:
        return _run(runner, tokens)
    finally:
        rows.clear()


def _run(runner: Any, tokens: int) -> Tensor:
    # Without attention, V1 leaves what is in the memory for its output: no two runs would be alike. V2 always
    # runs it.
    parameters = inspect.signature(runner._dummy_run).parameters
    options = {"force_attention": True} if "force_attention" in parameters else {}
    with torch.inference_mode():
        hidden = runner._dummy_run(tokens, **options)[0]
    if not isinstance(hidden, Tensor):
        raise _failed(f"a dummy batch returned {type(hidden).__name__} instead of hidden states")
    return hidden[:tokens].float().clone()


def _failed(what: str) -> SteeringError:
    return SteeringError(
        f"The self-test of the gate failed at start-up: {what}. Serving nothing rather than serve without "
        "the gate. Clear vLLM's compile cache (VLLM_CACHE_ROOT) and try --enforce-eager; please report it."
    )
