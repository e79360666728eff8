"""Forward hooks on vLLM's decoder layers, which read the residual stream and steer it.

A decoder layer of vLLM returns either the residual stream itself, or the pair (hidden, residual) whose *sum*
is the stream: the next layer's fused norm adds them. A layer of the second kind takes `residual` as an
argument of `forward`. Architectures that vLLM runs with the code of transformers return one tensor
`[1, tokens, width]`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from inferaligner.errors import UnknownArchitectureError
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.models.anatomy import Anatomy, dissect
from inferaligner.steering.plan import SteeringPlan
from inferaligner.vllm import ops  # registers torch.ops.inferaligner
from inferaligner.vllm.device_buffers import RowBuffers

_PREFIX = "inferaligner_"
_SHARED = (
    "graph_counts",
    "read_tokens",
    "read_slots",
    "slot_of_token",
    "steered",
    "steer_tokens",
    "partial",
    "score",
    "open",
    "watch_rows",
    "recent",
    "token_score",
    "over",
)

LayerHook = Callable[[Any, Any, Any], Any]


def install(
    model: nn.Module, plan: SteeringPlan, buffers: RowBuffers, dtype: torch.dtype, *, steers: bool
) -> Anatomy:
    """Registers the hooks; called once, before the model first runs, so that compiled graphs contain them.

    Args:
        model: the model that vLLM loaded.
        plan: the gate and the vectors.
        buffers: the worker's buffers; every hooked layer holds references to them.
        dtype: of the residual stream.
        steers: False installs the gate alone.

    Returns:
        The model's decoder layers.

    Raises:
        MismatchError: the model has another width or depth than the plan.
        UnknownArchitectureError: the layers' output cannot be interpreted, or a vector overflows in `dtype`.
    """
    anatomy = dissect(model)
    plan.check_fits(anatomy)
    monitor = buffers.monitor
    gate = plan.gate
    reads = _reads(gate, buffers)
    hooked = {read.layer for read, *_ in reads} | (set(plan.layers) if steers else set())
    if monitor is not None:
        hooked.add(monitor.layer)
    for index in sorted(hooked):
        layer = anatomy.layers[index]
        pair = returns_pair(layer, index)
        device = buffers.device
        for name in _SHARED:
            layer.register_buffer(_PREFIX + name, getattr(buffers, name), persistent=False)
        here = [each for each in reads if each[0].layer == index]
        weights = torch.stack([weight for *_, weight in here]) if here else gate.weights[:0]
        weights = weights.to(device=device, dtype=torch.float32)
        layer.register_buffer(_PREFIX + "weights", weights, persistent=False)
        if monitor is not None and monitor.layer == index:
            direction = monitor.weights.to(device=device, dtype=torch.float32)
            layer.register_buffer(_PREFIX + "monitor", direction, persistent=False)
        if steers and index in plan.additions:
            addition = plan.additions[index].to(device=device, dtype=dtype)
            if not torch.isfinite(addition).all():
                raise UnknownArchitectureError(
                    f"The steering vector of layer {index} does not fit into {dtype}. Serve in bfloat16."
                )
            layer.register_buffer(_PREFIX + "addition", addition, persistent=False)
        layer.register_forward_hook(
            _hook(
                index,
                pair,
                offsets=[row for _, row, _, _ in here],
                columns=[column for _, _, column, _ in here],
                decides=index == gate.last_layer,
                steers=steers and index in plan.additions,
                bias=gate.bias,
                monitor=monitor if monitor is not None and monitor.layer == index else None,
                decide_row=buffers.decide_row,
                turn_reads=buffers.turn_reads,
            )
        )
    return anatomy


def _reads(gate: GuidanceGate, buffers: RowBuffers) -> list[tuple[GateRead, int, int, Tensor]]:
    """Every read of both gates: its row in `read_tokens`, its column in `partial`, its weights `[width]`."""
    reads = [
        (read, gate.offsets.index(read.offset), column, weight)
        for column, (read, weight) in enumerate(zip(gate.reads, gate.weights, strict=True))
    ]
    if buffers.end_gate is not None:
        end, rows, columns = buffers.end_gate.gate, len(gate.offsets), len(gate.reads)
        reads += [
            (read, rows + end.offsets.index(read.offset), columns + column, weight)
            for column, (read, weight) in enumerate(zip(end.reads, end.weights, strict=True))
        ]
    return reads


def _hook(
    index: int,
    pair: bool,
    *,
    offsets: list[int],
    columns: list[int],
    decides: bool,
    steers: bool,
    bias: float,
    monitor: AnswerMonitor | None,
    decide_row: int,
    turn_reads: int,
) -> LayerHook:
    read_gate, decide = torch.ops.inferaligner.read_gate, torch.ops.inferaligner.decide
    watch, steer = torch.ops.inferaligner.watch, torch.ops.inferaligner.steer
    watches = monitor is not None
    centre, over = (0.0, 0.0) if monitor is None else (monitor.centre, monitor.bias)

    def hook(layer: Any, _inputs: Any, output: Any) -> Any:
        hidden, residual = stream_parts(output, pair, index)
        if offsets:
            read_gate(
                hidden,
                residual,
                layer.inferaligner_weights,
                offsets,
                columns,
                layer.inferaligner_graph_counts,
                layer.inferaligner_read_tokens,
                layer.inferaligner_read_slots,
                layer.inferaligner_partial,
            )
        if decides:
            decide(
                layer.inferaligner_partial,
                bias,
                decide_row,
                layer.inferaligner_graph_counts,
                layer.inferaligner_read_slots,
                layer.inferaligner_score,
                layer.inferaligner_open,
                layer.inferaligner_slot_of_token,
                layer.inferaligner_steered,
                layer.inferaligner_steer_tokens,
                turn_reads,
            )
        if watches:
            watch(
                hidden,
                residual,
                layer.inferaligner_monitor,
                centre,
                over,
                layer.inferaligner_graph_counts,
                layer.inferaligner_watch_rows,
                layer.inferaligner_recent,
                layer.inferaligner_token_score,
                layer.inferaligner_over,
                layer.inferaligner_open,
                layer.inferaligner_slot_of_token,
                layer.inferaligner_steered,
                layer.inferaligner_steer_tokens,
            )
        if not steers:
            return None
        if torch.compiler.is_compiling():
            stream = output[-1] if isinstance(output, tuple) else output
            stream = ops.steered_stream(stream, layer.inferaligner_addition, layer.inferaligner_steered)
            return (*output[:-1], stream) if isinstance(output, tuple) else stream
        # Into the residual half, so that vLLM's fusions with the other half stay possible.
        steer(
            hidden if residual is None else residual,
            layer.inferaligner_addition,
            layer.inferaligner_graph_counts,
            layer.inferaligner_steered,
            layer.inferaligner_steer_tokens,
        )
        return None

    return hook


def stream_parts(output: Any, pair: bool, index: int) -> tuple[Tensor, Tensor | None]:
    """Splits the output of a decoder layer.

    Args:
        output: the output.
        pair: whether the layer returns (hidden, residual).
        index: of the layer, for the error.

    Returns:
        `(hidden, residual)`, each `[tokens, width]`, whose sum is the residual stream; or (stream, None).

    Raises:
        UnknownArchitectureError: the output has another form.
    """
    if pair and isinstance(output, tuple) and len(output) == 2 and output[1] is not None:
        return output[0], output[1]
    if not pair and isinstance(output, tuple) and len(output) == 1:
        output = output[0]
    if not pair and isinstance(output, torch.Tensor):
        if output.ndim == 2:
            return output, None
        if output.ndim == 3 and output.shape[0] == 1:
            return output[0], None  # a view: additions reach the layer's output
    raise UnknownArchitectureError(
        f"Decoder layer {index} returned {_shape(output)}; expected "
        f"{'the pair (hidden, residual)' if pair else 'one tensor'}. This architecture is not supported "
        "with vLLM."
    )


def returns_pair(layer: nn.Module, index: int) -> bool:
    """Whether a decoder layer returns (hidden, residual).

    Raises `UnknownArchitectureError` if the layer is on another machine.
    """
    # The forward of the class: some layers are compiled or wrapped on the instance.
    parameters = inspect.signature(type(layer).forward).parameters
    if type(layer).__name__ == "PPMissingLayer":
        raise UnknownArchitectureError(
            f"Decoder layer {index} is on another machine (pipeline parallelism), which is not supported. "
            "Use tensor parallelism."
        )
    return "residual" in parameters


def _shape(output: Any) -> str:
    if isinstance(output, tuple):
        return "a tuple of " + ", ".join(_shape(item) for item in output)
    return (
        f"a tensor {list(output.shape)}" if isinstance(output, torch.Tensor) else f"a {type(output).__name__}"
    )
