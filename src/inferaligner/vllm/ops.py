"""The operations inside the model's graph: read the gate's tokens, decide, read answers, steer.

They take all that changes from step to step out of buffers at fixed addresses, so that a compiled graph or a
CUDA graph can run them again, and never make the host wait. Shapes: `tokens` is the number of rows of the
batch that vLLM runs (padding included), `slots` the number of requests that can run at once. Slot number
`slots` is the bin: unused entries point to it, it never opens, and what is written there is never read.

On a CPU the operations look at `counts` and do no work where there is none; on a GPU they work on the whole
buffers, because a captured graph cannot branch.

Which rows are steered is settled once a step and not in every layer: when the rows are loaded, and again
where a decision falls. So a steered layer has one addition to do, and a compiler can fuse it (`steered`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inferaligner.method.decision import opens

_LIBRARY: Any = torch.library.Library("inferaligner", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define(
    "read_gate(Tensor hidden, Tensor? residual, Tensor weights, int[] offsets, int[] columns, "
    "Tensor counts, Tensor read_tokens, Tensor read_slots, Tensor(a!) partial) -> ()"
)
_LIBRARY.define(
    "decide(Tensor partial, float bias, int row, Tensor(a!) counts, Tensor read_slots, Tensor(b!) score, "
    "Tensor(c!) open, Tensor slot_of_token, Tensor(d!) steered, Tensor(e!) steer_tokens, int turn_reads=-1) "
    "-> ()"
)
_LIBRARY.define(
    "watch(Tensor hidden, Tensor? residual, Tensor weights, float centre, float bias, Tensor(a!) counts, "
    "Tensor rows, Tensor(b!) recent, Tensor(c!) token_score, Tensor(d!) over, Tensor(e!) open, "
    "Tensor slot_of_token, Tensor(f!) steered, Tensor(g!) steer_tokens) -> ()"
)
_LIBRARY.define(
    "steer(Tensor(a!) stream, Tensor addition, Tensor counts, Tensor steered, Tensor steer_tokens) -> ()"
)


def read_gate(
    hidden: Tensor,
    residual: Tensor | None,
    weights: Tensor,
    offsets: Sequence[int],
    columns: Sequence[int],
    counts: Tensor,
    read_tokens: Tensor,
    read_slots: Tensor,
    partial: Tensor,
) -> None:
    """`partial[slot, column] = stream[token] · weight` for every token that this layer's reads want.

    Args:
        hidden, residual: `[tokens, width]`; the residual stream is their sum, or `hidden` alone.
        weights: `[reads, width]` float32, one row per read of this layer.
        offsets: for each read, its row in `read_tokens` and `read_slots` `[offsets + 1, slots]`.
        columns: for each read, its column in `partial` `[slots + 1, all reads]`.
    """
    on_cpu = hidden.device.type == "cpu"
    for number, (offset, column) in enumerate(zip(offsets, columns, strict=True)):
        count = int(counts[offset]) if on_cpu else read_tokens.shape[1]
        if count == 0:
            continue
        at = read_tokens[offset, :count]
        stream = hidden[at] if residual is None else hidden[at] + residual[at]
        # A sum over the width, not a matrix product: its rounding does not depend on the batch.
        partial[read_slots[offset, :count], column] = (stream.float() * weights[number]).sum(-1)


def decide(
    partial: Tensor,
    bias: float,
    row: int,
    counts: Tensor,
    read_slots: Tensor,
    score: Tensor,
    open: Tensor,
    slot_of_token: Tensor,
    steered: Tensor,
    steer_tokens: Tensor,
    turn_reads: int = -1,
) -> None:
    """`score[slot] = bias + Σ partial[slot]`, open unless it is at most 0: a read that is missing is NaN, and
    NaN opens.

    `turn_reads`: how many columns of `partial` are the guidance gate's. Those behind them are the end gate's,
    its bias among them; then a slot opens by either, and the score is the guidance gate's unless it has none
    (-inf) or the other one alone opens. -1: there is no end gate.
    """
    count = int(counts[row]) if partial.device.type == "cpu" else read_slots.shape[1]
    if count == 0:
        return
    slots = read_slots[row, :count]
    if turn_reads < 0:
        total = partial[slots].sum(-1) + bias
        opened = opens(total)
    else:
        parts = partial[slots]
        total, end = parts[:, :turn_reads].sum(-1) + bias, parts[:, turn_reads:].sum(-1)
        by_turn, by_end = opens(total), opens(end)
        opened = by_turn | by_end
        total = torch.where((total == -torch.inf) | (~by_turn & by_end), end, total)
    score[slots] = total
    # The bin's own place is set by nobody else, and must stay closed.
    open[slots] = opened & (slots != open.shape[0] - 1)
    settle(counts, open, slot_of_token, steered, steer_tokens)


def watch(
    hidden: Tensor,
    residual: Tensor | None,
    weights: Tensor,
    centre: float,
    bias: float,
    counts: Tensor,
    rows: Tensor,
    recent: Tensor,
    token_score: Tensor,
    over: Tensor,
    open: Tensor,
    slot_of_token: Tensor,
    steered: Tensor,
    steer_tokens: Tensor,
) -> None:
    """The monitor's score of one generated token per slot; opens slots whose mean is over, from there on.

    Args:
        weights: `[width]` float32.
        rows: `[3, slots]`: tokens of the batch, their slots, and the columns of `recent` that they go to.
        recent: `[slots + 1, window]`, the latest scores of each slot, zeros before the first token.
        token_score, over: `[slots + 1]`, what is told about the token.
    """
    count = int(counts[-3]) if hidden.device.type == "cpu" else rows.shape[1]
    if count == 0:
        return
    at, slots, columns = rows[:, :count]
    stream = hidden[at] if residual is None else hidden[at] + residual[at]
    score = (stream.float() * weights).sum(-1) + centre
    recent[slots, columns] = score
    token_score[slots] = score
    now = opens(recent[slots].mean(-1) + bias) & (slots != open.shape[0] - 1)
    over[slots] = now
    open[slots] = open[slots] | now
    settle(counts, open, slot_of_token, steered, steer_tokens)


def settle(
    counts: Tensor, open: Tensor, slot_of_token: Tensor, steered: Tensor, steer_tokens: Tensor
) -> None:
    """`steered[token] = open[slot_of_token[token]]`; on a CPU also the list of these tokens, and how many
    they are in the last of `counts`."""
    on_cpu = steered.device.type == "cpu"
    if on_cpu and int(counts[-2]) == 0:
        return
    torch.index_select(open, 0, slot_of_token, out=steered[:, 0])
    if on_cpu:
        at = steered[:, 0].nonzero()[:, 0]
        steer_tokens[: len(at)] = at
        counts[-1] = len(at)


def steer(stream: Tensor, addition: Tensor, counts: Tensor, steered: Tensor, steer_tokens: Tensor) -> None:
    """`stream[token] += addition` for the tokens that are steered; every other token keeps its bits."""
    if stream.device.type == "cpu":
        count = int(counts[-1])
        if count == stream.shape[0]:
            stream += addition
        elif count:
            stream[steer_tokens[:count]] += addition
        return
    # Adding -0.0 keeps every bit of a number.
    stream += torch.where(steered[: stream.shape[0]], addition, -0.0)


def steered_stream(stream: Tensor, addition: Tensor, steered: Tensor) -> Tensor:
    """The same as `steer`, as a new tensor and in operations that a compiler knows: it fuses them with the
    norm that comes next, and a steered layer costs next to nothing."""
    return torch.where(steered[: stream.shape[-2]], stream + addition, stream)


def _nothing(*_: object) -> None:
    """What the compiler needs to know: the operations return nothing."""


for _name, _function in (
    ("read_gate", read_gate),
    ("decide", decide),
    ("watch", watch),
    ("steer", steer),
):
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _function, _key)
    torch.library.register_fake(f"inferaligner::{_name}", _nothing, lib=_LIBRARY)
