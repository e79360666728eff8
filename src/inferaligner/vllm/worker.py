"""vLLM's worker with the gate on its model.

vLLM gets the class by name (`--worker-cls`), so a machine without this package fails to start instead of
serving without the gate.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, AsyncModelRunnerOutput

from inferaligner.errors import SteeringError
from inferaligner.vllm.compatibility import check_deployment
from inferaligner.vllm.device_buffers import RowBuffers
from inferaligner.vllm.layers import install
from inferaligner.vllm.platform_worker import PlatformWorker
from inferaligner.vllm.protocol import attach, attached_orders
from inferaligner.vllm.runner_hooks import RunnerHook
from inferaligner.vllm.self_test import self_test
from inferaligner.vllm.slots import PendingDecisions, Slots


class GatedWorker(PlatformWorker):
    """One worker. Under tensor parallelism every worker decides, on the same reduced stream."""

    def __init__(self, vllm_config: Any, *args: Any, **options: Any) -> None:
        self.gate_settings = check_deployment(vllm_config)
        self.gate_adapters = self.gate_settings.adapter_rules()
        super().__init__(vllm_config, *args, **options)
        self._pending: PendingDecisions | None = None
        self._warming_up = False

    def load_model(self, **options: Any) -> None:
        """Loads the model, and registers the hooks before the model first runs."""
        super().load_model(**options)
        settings, scheduler = self.gate_settings, self.vllm_config.scheduler_config
        plan = settings.plan()
        steers = not settings.shadow and settings.on_open == "steer"
        self.gate_rows = RowBuffers(
            plan.gate,
            scheduler.max_num_seqs,
            scheduler.max_num_batched_tokens,
            torch.device(self.device),
            plan.monitor,
            settings.end_gate(plan),
        )
        install(self.model_runner.get_model(), plan, self.gate_rows, self.model_config.dtype, steers=steers)
        self.gate_slots = Slots(self.gate_rows, steers=steers)
        self._runner_hook = RunnerHook(self.model_runner, self.gate_slots.plan_batch)

    def compile_or_warm_up_model(self) -> Any:
        """Compiles the model, captures its CUDA graphs, and runs the self-test on the result."""
        self._warming_up = True
        try:
            times = super().compile_or_warm_up_model()
        finally:
            self._warming_up = False
        self_test(self.model_runner, self.gate_rows, steers=self.gate_slots.steers)
        return times

    def execute_model(self, scheduler_output: Any, *args: Any, **options: Any) -> Any:
        """Applies the step's orders, runs the model, and attaches the decisions to its output.

        Raises `SteeringError` if the step has no orders, or a part of it passed the gate by.
        """
        if self._warming_up:
            # vLLM makes up requests to compile the kernels of its second runner. No scheduler sent them and
            # no client gets their answers: nothing is read or steered.
            self._runner_hook.scheduled = None
            return super().execute_model(scheduler_output, *args, **options)
        tokens = scheduler_output.total_num_scheduled_tokens
        orders = attached_orders(scheduler_output)
        if orders is None:
            raise SteeringError(
                "A step came without orders about the gate. Start vLLM with the scheduler class of "
                "inferaligner."
            )
        gone = [*scheduler_output.finished_req_ids, *(scheduler_output.preempted_req_ids or ())]
        self.gate_slots.begin_step(gone, orders)
        self._runner_hook.scheduled = scheduler_output
        replayed = [request for request, order in orders.orders.items() if order.replayed]
        self._runner_hook.restore_prompt_logprobs(replayed)
        output = super().execute_model(scheduler_output, *args, **options)
        self._pending = self.gate_slots.end_step(tokens)
        return output if output is None else self._with_decisions(output)

    def sample_tokens(self, *args: Any, **options: Any) -> Any:
        """Samples the next tokens, and attaches the decisions to the output."""
        return self._with_decisions(super().sample_tokens(*args, **options))

    def _with_decisions(self, output: Any) -> Any:
        pending, self._pending = self._pending, None
        if pending is None:
            return output
        if isinstance(output, AsyncModelRunnerOutput):
            return _OutputWithDecisions(output, pending)
        if output is None or output is EMPTY_MODEL_RUNNER_OUTPUT:
            raise SteeringError("A step with decisions returned no output to carry them.")
        attach(pending.arrive(), output)
        return output

    # -- the weights must stay those that the aligner was fitted on ------------------------------------

    def reload_weights(self, *args: Any, **options: Any) -> None:
        """Always raises `SteeringError`: the gate was fitted on the loaded weights."""
        raise SteeringError("Weights cannot be replaced under an aligner. Restart the engine.")

    update_weights = start_weight_update = start_draft_weight_update = finish_weight_update = reload_weights
    init_weight_transfer_engine = reset_weights = discard = elastic_ep_execute = reload_weights

    def add_lora(self, lora_request: Any) -> bool:
        """Loads an adapter. Raises `SteeringError` for one that requests may not have."""
        if (objection := self.gate_adapters.objection(lora_request)) is not None:
            raise SteeringError(objection)
        return bool(super().add_lora(lora_request))

    def sleep(self, level: int = 1) -> None:
        """Sleeps at level 1, which keeps the weights in host memory; other levels raise `SteeringError`."""
        if level != 1:
            raise SteeringError(
                f"Sleep of level {level} drops the weights that the aligner was fitted on. Use level 1, or "
                "restart the engine."
            )
        super().sleep(level)


class _OutputWithDecisions(AsyncModelRunnerOutput):
    """vLLM's output and its decisions, both still on their way from the device."""

    def __init__(self, output: Any, pending: PendingDecisions) -> None:
        self._output = output
        self._pending = pending

    def get_output(self) -> Any:
        """Waits for both, and attaches the decisions to the output."""
        output = self._output.get_output()
        attach(self._pending.arrive(), output)
        return output

    def get_kv_connector_output(self) -> Any:
        """Called from vLLM 0.33 on if the output itself has failed."""
        return self._output.get_kv_connector_output()
