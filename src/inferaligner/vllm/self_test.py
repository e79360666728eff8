"""The start-up self-test: it checks that the hooks act in the graphs that will serve.

It runs vLLM's dummy batch. Tokens of a closed slot must keep every bit of their hidden states, tokens of an
open slot must all change, the gate must read and decide, and a monitor must read and open. A graph that was
compiled or captured without the operations cannot pass.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inferaligner.errors import SteeringError
from inferaligner.method.decision import opens
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.vllm.device_buffers import RowBuffers

_TOKENS = 8


def self_test(runner: Any, rows: RowBuffers, *, steers: bool) -> None:
    """Raises `SteeringError` unless the gate acts on the runner's model, and steering too if it `steers`."""
    tokens = min(_TOKENS, rows.slot_of_token.shape[0])
    plain = _run(runner, tokens, rows)
    if not torch.equal(plain, _run(runner, tokens, rows)):
        raise _failed("the same batch gave two results, so the effect of steering cannot be measured")
    _check_gate(runner, rows, tokens)
    if rows.monitor is not None:
        _check_monitor(runner, rows, rows.monitor, tokens)
    if steers:
        rows.reset_slot(0, open_now=False)
        if not torch.equal(plain, _run(runner, tokens, rows, steered=[(0, tokens, 0)])):
            raise _failed("rows whose gate is closed were changed")
        rows.reset_slot(0, open_now=True)
        changed = (_run(runner, tokens, rows, steered=[(0, tokens, 0)]) != plain).any(-1)
        if not changed.all():
            raise _failed(f"{int((~changed).sum())} of {tokens} rows whose gate is open were not steered")
    rows.reset_slot(0, open_now=False)


def _check_gate(runner: Any, rows: RowBuffers, tokens: int) -> None:
    rows.reset_slot(0, open_now=True, kind="template" if rows.end_gate is None else "begun")
    _run(runner, tokens, rows, reads=[[(number % tokens, 0)] for number in range(rows.read_rows)], due=[0])
    parts, score = rows.partial[0].cpu(), float(rows.score[0])
    if not torch.isfinite(parts).all():
        raise _failed(
            f"{int((~torch.isfinite(parts)).sum())} of {len(parts)} reads of the gate gave no finite number"
        )
    own = len(rows.gate.reads)
    expected, end = float(parts[:own].sum()) + rows.gate.bias, float(parts[own:].sum())
    if rows.end_gate is not None and expected <= 0 < end:
        expected = end
    if abs(score - expected) > 1e-3 * (1 + abs(expected)) or bool(rows.open[0]) != opens(score):
        raise _failed(f"the gate decided {bool(rows.open[0])} at score {score}; expected score {expected}")


def _check_monitor(runner: Any, rows: RowBuffers, monitor: AnswerMonitor, tokens: int) -> None:
    rows.reset_slot(0, open_now=False)
    rows.token_score[0] = torch.nan
    _run(runner, tokens, rows, watched=[(tokens - 1, 0, 1)])
    score = float(rows.token_score[0])
    opened = opens(score / monitor.window + monitor.bias)
    if not math.isfinite(score) or (bool(rows.over[0]), bool(rows.open[0])) != (opened, opened):
        raise _failed(f"the monitor read a token at score {score} and opened {bool(rows.open[0])}")


def _run(
    runner: Any,
    tokens: int,
    rows: RowBuffers,
    *,
    reads: Sequence[Sequence[tuple[int, int]]] = (),
    due: Sequence[int] = (),
    steered: Sequence[tuple[int, int, int]] = (),
    watched: Sequence[tuple[int, int, int]] = (),
) -> Tensor:
    """Runs a dummy batch with loaded buffers (`RowBuffers.load`); returns hidden states `[tokens, width]`."""
    # Without attention, V1 leaves its output uninitialised, so two runs would differ. V2 always runs it.
    parameters = inspect.signature(runner._dummy_run).parameters
    options = {"force_attention": True} if "force_attention" in parameters else {}
    rows.load(reads, due, steered, tokens, watched)
    try:
        with torch.inference_mode():
            hidden = runner._dummy_run(tokens, **options)[0]
    finally:
        rows.clear()
    if not isinstance(hidden, Tensor):
        raise _failed(f"a dummy batch returned {type(hidden).__name__} instead of hidden states")
    return hidden[:tokens].float().clone()


def _failed(reason: str) -> SteeringError:
    return SteeringError(
        f"The self-test of the gate failed at start-up: {reason}. Serving nothing rather than without "
        "the gate. Clear vLLM's compile cache (VLLM_CACHE_ROOT) and try --enforce-eager; please report it."
    )
