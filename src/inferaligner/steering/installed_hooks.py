"""The hooks of one guard on a model's decoder layers, from the time they are added until they are removed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from inferaligner.errors import SteeringError
from inferaligner.method.monitor import AnswerMonitor
from inferaligner.models.anatomy import Anatomy, module_device
from inferaligner.steering.batch_state import Pass, PromptScope
from inferaligner.steering.guard_state import GuardState
from inferaligner.steering.hooks import GateHook, SteerHook
from inferaligner.steering.monitor_hooks import MonitorHook, refuse_several_tokens
from inferaligner.steering.plan import SteeringPlan


class InstalledHooks:
    """Gate, monitor and steer hooks, and whether all of them ran in a pass that needs them."""

    def __init__(self) -> None:
        self.handles: list[RemovableHandle] = []
        self.devices: set[torch.device] = set()  # of the layers with hooks
        self._gate: list[GateHook] = []
        self._steer: list[SteerHook] = []
        self._monitor: MonitorHook | None = None

    def add(
        self,
        anatomy: Anatomy,
        plan: SteeringPlan,
        state: GuardState,
        *,
        monitor: AnswerMonitor | None,
        steers: bool,
        dtype: torch.dtype,
    ) -> None:
        """Registers the hooks on the layers.

        Args:
            anatomy: the model's layers.
            plan: the reads of the gates, and the vectors.
            state: the guard's state, which the hooks read and write.
            monitor: the monitor that reads answers, if any.
            steers: whether vectors are added at all.
            dtype: the model's precision.
        """
        layers = anatomy.layers
        # Vectors are put in place here, not at their first use: see hooks.py on memory of compiled code.
        at = {n: module_device(layers[n]) for n in {*plan.gate_layers, *plan.layers}}
        self.devices = set(at.values())
        for layer in plan.gate_layers:
            self._gate.append(GateHook(state, plan, layer, at[layer]))
            self.handles.append(layers[layer].register_forward_hook(self._gate[-1]))
        if monitor is not None:
            read = layers[monitor.layer]
            self._monitor = MonitorHook(state, monitor, module_device(read))
            self.handles.append(read.register_forward_hook(self._monitor))
        if steers:
            for layer in plan.layers:
                vector = plan.additions[layer].to(at[layer], copy=True)
                hook = SteerHook(state, vector, dtype if dtype.is_floating_point else None)
                self._steer.append(hook)
                self.handles.append(layers[layer].register_forward_hook(hook))

    def remove(self) -> None:
        """Removes every hook; safe to call twice."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self._gate.clear()
        self._steer.clear()
        self._monitor = None

    def arm(self, scope: PromptScope) -> None:
        """Prepares the additions of decoding steps, once the rows of `scope` are decided."""
        assert scope.decoding is not None and scope.acting is not None
        for hook in self._steer:  # a monitored step reads the open rows from the monitor's state instead
            hook.arm(scope.acting[:, None, None], scope.decoding.steers, scope.strengths)

    def before_pass(self, scope: PromptScope, now: Pass, ids: Tensor | None, length: int) -> None:
        """Called before a pass with its token ids `[rows, tokens]`, None for embeddings.

        Raises:
            SteeringError: a step has several tokens a row, which the monitor cannot follow.
        """
        if now.reads_answer:
            assert scope.watch is not None and self._monitor is not None
            if now.steers == "monitored":
                refuse_several_tokens(length)
            scope.watch.note_tokens(ids)
            self._monitor.ran = False
        if now.reads_gate:
            for hook in self._gate:
                hook.ran = False
        if now.steers != "nothing":
            for steer in self._steer:
                steer.ran = False

    def after_pass(self, now: Pass) -> None:
        """Raises `SteeringError` unless every hook ran that the pass needs."""
        missed = now.reads_gate and not all(hook.ran for hook in self._gate)
        if now.steers != "nothing":
            missed = missed or not all(hook.ran for hook in self._steer)
        if now.reads_answer:
            missed = missed or self._monitor is None or not self._monitor.ran
        if missed:
            raise SteeringError(
                "The model ran without the guard's hooks, so its output is unprotected and was discarded. "
                "This happens when it was compiled before the aligner was applied: apply first, then "
                "torch.compile, or call torch._dynamo.reset() after apply."
            )
