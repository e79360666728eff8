"""The operations in the model's graph (`torch.ops.inferaligner`): `read_gate`, `decide`, `watch`, `steer`.

The hooks of `layers.py` call them in each forward pass, in this order:
1. `read_gate` in every layer that a gate reads, for the tokens at its offsets;
2. `decide` in the guidance gate's last layer, for requests whose prompt ends in this pass;
3. `watch` in the monitor's layer, for generated tokens;
4. `steer` in every steered layer; compiled models use `steered_stream` instead.

All values that change between steps are in buffers at fixed addresses (`device_buffers.RowBuffers`). So a
compiled graph or a CUDA graph can run again, and the host never waits. Shapes: `tokens` is the number of
tokens in vLLM's batch, padding included, and `slots` the number of requests that can run at once. Slot number
`slots` is the padding slot: unused entries point to it, it never opens, and its values are never read.

On a CPU the operations read `counts`, and do nothing where a count is 0. On a GPU they work on the whole
buffers, because a captured graph cannot branch.

Which tokens are steered is computed when the buffers are loaded and again after a decision, not in every
layer. So a steered layer costs one addition, which a compiler can fuse.
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
    """Writes `partial[slot, column] = stream[token] · weight` for every token that this layer's reads name.

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
    """Writes `score[slot] = bias + Σ partial[slot]`, and opens the slot unless the score is at most 0.

    A read that is missing is NaN, and NaN opens.

    Args:
        partial: `[slots + 1, all reads]`, the dot products.
        bias: of the guidance gate.
        row: the row of `read_slots` that lists the slots to decide.
        score, open: `[slots + 1]`, the results.
        turn_reads: number of columns of `partial` that belong to the guidance gate. The columns behind them
            are the end gate's, its bias included. Then either gate opens a slot, and the score is the
            guidance gate's unless it has none (-inf) or the end gate alone opens. -1: no end gate.
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
    # Unused entries write to the padding slot, which must stay closed.
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
    """Scores one generated token per slot, and opens slots whose mean score is above the threshold.

    The token that opens a slot is the first one that is steered.

    Args:
        hidden, residual: `[tokens, width]`; the residual stream is their sum, or `hidden` alone.
        weights: `[width]` float32.
        centre, bias: a token scores `stream · weights + centre`; the mean of the latest scores plus `bias` is
            compared with 0.
        rows: `[3, slots]`: tokens of the batch, their slots, and the columns of `recent` for their scores.
        recent: `[slots + 1, window]`, the latest scores of each slot, zeros before the first token.
        token_score, over: `[slots + 1]`, the token's score, and whether the mean is above the threshold.
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
    """Writes `steered[token] = open[slot_of_token[token]]`; on a CPU also the list of these tokens in
    `steer_tokens` and their number in `counts[-1]`."""
    on_cpu = steered.device.type == "cpu"
    if on_cpu and int(counts[-2]) == 0:
        return
    torch.index_select(open, 0, slot_of_token, out=steered[:, 0])
    if on_cpu:
        at = steered[:, 0].nonzero()[:, 0]
        steer_tokens[: len(at)] = at
        counts[-1] = len(at)


def steer(stream: Tensor, addition: Tensor, counts: Tensor, steered: Tensor, steer_tokens: Tensor) -> None:
    """Adds `addition` `[width]` to the steered tokens of `stream`; all other tokens keep every bit."""
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
    """The result of `steer` as a new tensor, in operations that a compiler fuses with the next norm."""
    return torch.where(steered[: stream.shape[-2]], stream + addition, stream)


def _nothing(*_: object) -> None:
    """The operations for a compiler that traces shapes: they return nothing."""


for _name, _function in (
    ("read_gate", read_gate),
    ("decide", decide),
    ("watch", watch),
    ("steer", steer),
):
    for _key in ("CPU", "CUDA"):
        _LIBRARY.impl(_name, _function, _key)
    torch.library.register_fake(f"inferaligner::{_name}", _nothing, lib=_LIBRARY)
