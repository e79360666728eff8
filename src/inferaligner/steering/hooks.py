"""The forward hooks on decoder layers: read the gate, add α·θ_l.

Both return an output object unchanged when there is nothing to do, so a closed prompt gets the bare model's
own tensors. `torch.where` separates the rows, never a multiplication with zero: a closed row in a mixed batch
keeps its exact bits. For decoding this is done once per prompt batch: each step is one addition, of -0.0 to
closed rows.

`torch.compile` traces these two calls into the model's graph. It compiles again for every new number that it
meets here, so a decoding step must read nothing that changes from token to token or prompt to prompt, and a
prefill takes the number of tokens from the stream's shape, which may be dynamic.

Under CUDA graphs, the next run of compiled code overwrites the tensors that it returned. So no hook keeps
such a tensor: vectors are put in place when the hooks are added, and a vector on another device or in another
precision than the stream is converted again every time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from inferaligner.errors import SteeringError
from inferaligner.method.activations import is_recording
from inferaligner.method.gate import GateRead, GuidanceGate
from inferaligner.models.anatomy import residual, with_residual
from inferaligner.steering.batch_state import Pass, PromptScope, Steers
from inferaligner.steering.guard_state import GuardState
from inferaligner.steering.plan import SteeringPlan

LayerHook = Callable[[nn.Module, object, object], object]


class GateHook:
    """Adds the dot products of one layer's reads to the scores; the gate's last layer decides the rows."""

    def __init__(self, state: GuardState, plan: SteeringPlan, layer: int, device: torch.device) -> None:
        """
        Args:
            state: of the guard that the hook works for.
            plan: gives the reads of the two gates; the hook keeps those of its layer.
            layer: the decoder layer after which the hook reads.
            device: where the layer computes; the weights are copied there.
        """

        def reads_of(gate: GuidanceGate) -> list[tuple[GateRead, Tensor]]:
            reads = zip(gate.reads, gate.weights, strict=True)
            return [(read, weight.to(device, copy=True)) for read, weight in reads if read.layer == layer]

        self._state = state
        self._reads = reads_of(plan.gate)
        self._end_reads = reads_of(plan.ends.gate)
        self._last = layer == plan.gate.last_layer
        self.ran = False  # reset before every pass that reads the gate, checked after it

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        scope, now = self._state.scope, self._state.now
        if scope is None or now is None:
            _refuse_outside()
            return
        if not now.reads_gate:
            return
        self.ran = True
        stream = residual(output)
        rows, ends, reads = scope.places_on(stream.device)
        for number, (read, weight) in enumerate(self._reads):
            if weight.device != stream.device:
                weight = weight.to(stream.device)
                if not torch.compiler.is_compiling():
                    self._reads[number] = (read, weight)
            scope.add_scores(_product(stream, rows, reads - read.offset - now.start, weight))
        if scope.other_ends is not None:
            for read, weight in self._end_reads:
                columns = ends - read.offset - now.start
                scope.other_ends.add(_product(stream, rows, columns, weight.to(stream.device)))
        if self._last:
            scope.latch(now, stream.shape[1])


def _product(stream: Tensor, rows: Tensor, columns: Tensor, weight: Tensor) -> Tensor:
    """Dot products `[rows]` of a weight `[width]` and the stream `[rows, tokens, width]` at a column per row.

    Rows whose column lies outside the stream get 0.
    """
    inside = (columns >= 0) & (columns < stream.shape[1])
    picked = stream[rows, columns.clamp(0, stream.shape[1] - 1)].float()
    # A sum over the width, not a matrix product: its rounding does not depend on the batch.
    return torch.where(inside, (picked * weight).sum(-1), 0.0)


class SteerHook:
    """x_l = x'_l + α·θ_l on the open rows (equation 4 of the paper)."""

    def __init__(self, state: GuardState, vector: Tensor, dtype: torch.dtype | None = None) -> None:
        """
        Args:
            state: of the guard that the hook works for.
            vector: α·θ_l `[width]`, on the layer's device.
            dtype: precision that the residual stream is expected to have; None: the vector's own.
        """
        self._state = state
        self._vector = vector
        self._addition = vector.to(dtype or vector.dtype)
        self._decoding = self._addition  # what a decoding step adds: [width] or [rows, 1, width]
        self.ran = False  # reset before every pass that steers, checked after it

    def arm(self, open_rows: Tensor, steers: Steers, strengths: Tensor | None = None) -> None:
        """Prepares what the next decoding steps add.

        Args:
            open_rows: `[rows, 1, 1]` bool.
            steers: which rows these steps steer.
            strengths: `[rows]`, scale what is added to each row; None is 1 for all.
        """
        if steers == "everything":
            self._decoding = self._addition
        elif steers == "open_rows":
            addition = self._addition
            if strengths is not None:
                addition = strengths[:, None, None].to(addition) * addition
            # Every number keeps its bits when -0.0 is added; 0.0 would turn -0.0 into 0.0.
            self._decoding = torch.where(open_rows.to(addition.device), addition, -0.0)

    def __call__(self, module: nn.Module, inputs: object, output: object) -> object:
        scope, now = self._state.scope, self._state.now
        if scope is None or now is None:
            _refuse_outside()
            return None
        if now.steers == "nothing":
            return None
        self.ran = True
        if now.steers == "by_position":
            return self._by_position(scope, now, output)
        addition = self._decoding if now.steers != "monitored" else self._watched(scope, output)
        if type(output) is Tensor and output.dtype == addition.dtype and output.device == addition.device:
            return output + addition  # the general way below has the same result at twice the cost
        stream = residual(output)
        return with_residual(output, stream + addition.to(stream))

    def _watched(self, scope: PromptScope, output: object) -> Tensor:
        """What a monitored step adds, `[rows, 1, width]`: -0.0 to rows that are still closed."""
        assert scope.watch is not None
        stream = residual(output)
        acting = scope.watch.open_now.to(stream.device)
        if scope.strengths is not None:
            acting = acting & (scope.strengths != 0)[:, None, None].to(stream.device)
        return torch.where(acting, scope.scaled(self._addition_to(stream)), -0.0)

    def _by_position(self, scope: PromptScope, now: Pass, output: object) -> object:
        if scope.open is None and not now.reads_answer:
            # Below the gate's layer, in the first prefill: a replay follows if rows open.
            return None
        stream = residual(output)
        addition = self._addition_to(stream)
        first, mask = scope.steered_columns(now, stream)
        tail = stream[:, first:]
        tail = torch.where(mask, tail + scope.scaled(addition, now), tail)
        return with_residual(output, tail if first == 0 else torch.cat([stream[:, :first], tail], dim=1))

    def _addition_to(self, stream: Tensor) -> Tensor:
        """α·θ_l in the stream's precision, on its device; kept for the next call."""
        if self._addition.device == stream.device and self._addition.dtype == stream.dtype:
            return self._addition
        addition = self._vector.to(stream)
        if not torch.compiler.is_compiling():
            self._addition = addition
        return addition


def _refuse_outside() -> None:
    """Raises `SteeringError` for a decoder layer that ran outside a call of the model.

    Only recording activations may do that.
    """
    if not is_recording():
        raise SteeringError(
            "A decoder layer ran outside a call of the guarded model, where nothing can be gated; its output "
            "was discarded. Call the model itself or its `generate`, not its `forward` or a part of it; in a "
            "wrapper, call the model inside it."
        )
