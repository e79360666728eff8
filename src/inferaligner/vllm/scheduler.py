"""vLLM's scheduler with the gate's decisions: it owns them, and orders the workers to make and apply them.

Decisions are recorded before vLLM processes the step's output, because they determine whether the blocks that
this output completes are cached.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import RequestStatus

from inferaligner.errors import SteeringError
from inferaligner.server_shared.gate_report import Action, GateReport
from inferaligner.vllm.audit import AuditLog
from inferaligner.vllm.compatibility import check_deployment, fail_request
from inferaligner.vllm.prefix_cache import PrefixCacheLimits
from inferaligner.vllm.prompts import PromptRules
from inferaligner.vllm.protocol import (
    StepOrders,
    TokenDecision,
    attach,
    attached_decisions,
    attached_orders,
)
from inferaligner.vllm.refusal import certain_logprobs, refusal_tokens
from inferaligner.vllm.request_state import GatedRequest, GateRules
from inferaligner.vllm.settings import KEY

STOP_REASON = "inferaligner: the gate opened"
"""`stop_reason` of a request that was refused because its gate opened."""


class GatedScheduler(Scheduler):
    """The scheduler for `--no-async-scheduling`, which vLLM always uses on a CPU."""

    def __init__(self, vllm_config: Any, *args: Any, **options: Any) -> None:
        self.gate_settings = check_deployment(vllm_config)
        super().__init__(vllm_config, *args, **options)
        settings = self.gate_settings
        plan = settings.plan()
        self.gate_rules = GateRules(plan, steers=not settings.shadow, refuses=settings.on_open == "refuse")
        self._bias, self._layer = plan.gate.bias, plan.gate.last_layer
        self._strength = settings.artifact().steering.strength
        self._refusal = refusal_tokens(vllm_config, settings)
        self.gate_prompts = PromptRules.from_config(vllm_config, settings)
        self.gate_log = AuditLog.from_config(vllm_config, settings)
        self._gated: dict[str, GatedRequest] = {}
        self._replaying: list[str] = []
        self._closed: dict[str, int] = {}  # since the last step: request -> admission
        PrefixCacheLimits(
            self.kv_cache_manager,
            readable=lambda request: self.gate_rules.readable(self._gated[request.request_id]),
            writable=lambda request: self.gate_rules.writable(self._gated[request.request_id]),
        )

    # -- requests come and go ------------------------------------------------------------------------

    def add_request(self, request: Any) -> None:
        """Adds a request; one that cannot be gated ends with an error in the next step."""
        if request.request_id in self.requests:
            raise SteeringError(f"Request {request.request_id} continues another one, which cannot be gated.")
        gated = GatedRequest(
            request.num_prompt_tokens,
            refused=self.gate_prompts.objection(request),
            end=self.gate_prompts.end_of(request.prompt_token_ids),
        )
        request.resumable = False
        self._gated[request.request_id] = gated
        super().add_request(request)
        if gated.refused is not None:
            # The front end rejects these with a reason; a request that bypassed it ends with an error.
            fail_request(self, request.request_id, gated.refused)

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        if self._gated[request.request_id].refused is not None:
            return False
        return bool(super()._handle_blocked_waiting_request(request))

    def _free_request(self, request: Any, *args: Any, **options: Any) -> tuple[Any, Any]:
        if self.gate_rules.window and self._gated[request.request_id].closed:
            # The monitor read the last token after vLLM last cached blocks.
            self._cache_known(request)
        params, others = super()._free_request(request, *args, **options)
        gated = self._gated.pop(request.request_id)
        return {**(params or {}), KEY: self._report(gated)}, others

    def _report(self, gated: GatedRequest) -> dict[str, Any]:
        """The report on a request; the same object every time once the request is decided."""
        aligner = self.gate_settings.sha256[:12]
        if gated.report is not None:
            return gated.report
        if gated.refused is not None:
            return {"aligner": aligner, "refused": gated.refused}
        if gated.decision is None:
            return {"score": None, "open": None, "action": "undecided", "aligner": aligner}
        report = GateReport(
            score=gated.decision.score,
            open=gated.decision.open,
            action=self._action(gated.decision.open),
            layer=self._layer,
            strength=self._strength,
            aligner=aligner,
            bias=self._bias,
        )
        if (token := gated.answer.opened_at) is not None:
            report = report.opened_by_monitor(token, self._action(True))
        gated.report = report.public()
        return gated.report

    def _action(self, is_open: bool) -> Action:
        if not is_open:
            return "none"
        if self.gate_settings.shadow:
            return "shadow"
        return "refused" if self.gate_rules.refuses else "steered"

    # -- one step ------------------------------------------------------------------------------------

    def schedule(self, *args: Any, **options: Any) -> Any:
        """Schedules a step, and attaches orders for requests that begin, resume or are due for a decision."""
        output = super().schedule(*args, **options)
        begin = [new.req_id for new in output.scheduled_new_reqs]
        begin += output.scheduled_cached_reqs.resumed_req_ids
        orders = {
            name: self.gate_rules.order(self._gated[name], self.requests[name].num_output_tokens)
            for name in begin
        }
        message, self._closed = StepOrders(orders, closed=self._closed), {}
        for name, tokens in output.num_scheduled_tokens.items():
            gated, after = self._gated[name], self.requests[name].num_computed_tokens
            if gated.decision is None and after - tokens < gated.prompt_length <= after:
                message.due[name] = gated.admission
            if (number := self.gate_rules.next_token(gated, after)) is not None:
                message.watched[name] = gated.admission, number
        attach(message, output)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """Records the step's decisions, then processes its output, then replays or stops opened requests.

        Raises `SteeringError` if a decision is missing.
        """
        message = attached_orders(scheduler_output)
        if message is None:
            raise SteeringError("A step came back that this scheduler did not send out.")
        stopped = self._record(message, model_runner_output)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for name in self._replaying:
            self._replay(name)
        self._replaying.clear()
        self._stop(stopped, outputs)
        # To every output, not only the last one: the front end itself ends a request at a stop string.
        for batch in outputs.values():
            for each in batch.outputs:
                if (gated := self._gated.get(each.request_id)) is not None:
                    each.kv_transfer_params = {**(each.kv_transfer_params or {}), KEY: self._report(gated)}
        return outputs

    def _record(self, message: StepOrders, output: Any) -> list[str]:
        """Records decisions; returns the requests that end now because their gate opened."""
        stopped, results = [], attached_decisions(output)
        for name, admission in message.due.items():
            decision = results.decisions.get(admission)
            if decision is None:
                raise SteeringError(
                    f"Request {name} was due for a decision, and the worker sent none. Stopping rather than "
                    "serving without the gate."
                )
            gated, request = self._gated.get(name), self.requests.get(name)
            if gated is None or request is None or gated.admission != admission or gated.decision is not None:
                continue  # aborted, or preempted before the decision: then it is decided again
            gated.decision = decision
            self.gate_log.write(request, self._report(gated), self._bias)
            if not decision.open or not self.gate_rules.steers:
                if not self.gate_rules.window:
                    self._closed[name] = admission
                if request.status == RequestStatus.RUNNING:
                    self._cache_known(request)  # blocks that were held back until the gate closed
            elif self.gate_rules.refuses:
                stopped.append(name)
                self._drop(name, output)
            elif self.gate_rules.replays and request.status == RequestStatus.RUNNING:
                # A request that was preempted meanwhile resumes with its decision; no replay is needed.
                self._replaying.append(name)
                self._drop(name, output)
        for name, (admission, number) in message.watched.items():
            self._record_token(name, admission, results.tokens.get(admission), number)
        return stopped

    def _record_token(self, name: str, admission: int, token: TokenDecision | None, number: int) -> None:
        """Records what the monitor read, and makes a new report if the token opens the answer."""
        if token is None or token.number != number:
            raise SteeringError(
                f"The monitor was to read generated token {number} of request {name}, and the worker sent "
                "no score of it. Stopping rather than serving without the monitor."
            )
        gated, request = self._gated.get(name), self.requests.get(name)
        if gated is None or request is None or gated.admission != admission or not gated.closed:
            return
        if gated.answer.record(number, token.score, token.opens):
            gated.report = None
            self.gate_log.write(request, self._report(gated), self._bias)

    def _cache_known(self, request: Any) -> None:
        """Writes a request's computed blocks to the prefix cache, up to its limit."""
        known = request.num_computed_tokens - request.num_output_placeholders
        self.kv_cache_manager.cache_blocks(request, min(known, request.num_tokens))

    @staticmethod
    def _drop(name: str, output: Any) -> None:
        """Drops the first token of an opened request, which was sampled without steering."""
        if output.sampled_token_ids:
            output.sampled_token_ids[output.req_id_to_index[name]] = []
        output.prompt_logprobs_dict.pop(name, None)

    def _replay(self, name: str) -> None:
        """Sends an opened request back to the queue, to be computed again with steering."""
        request = self.requests.get(name)
        if request is None or request.status != RequestStatus.RUNNING:
            return
        self.running.remove(request)
        self._preempt_request(request, time.monotonic(), drop_stale_output=True)
        self._gated[name].replaying = True
        # As in reset_prefix_cache: the runner must not treat it as a request of the last step.
        self.prev_step_scheduled_req_ids.discard(name)

    def _stop(self, names: list[str], outputs: dict[int, Any]) -> None:
        """Ends refused requests with an empty answer."""
        for name in names:
            request = self.requests[name]
            report = self._report(self._gated[name])
            self.finish_requests(name, RequestStatus.FINISHED_STOPPED)
            last = EngineCoreOutput(
                request_id=name,
                new_token_ids=list(self._refusal),
                new_logprobs=certain_logprobs(self._refusal, request),
                finish_reason=FinishReason.STOP,
                stop_reason=STOP_REASON,
                events=request.take_events(),
                kv_transfer_params={KEY: report},
                prefill_stats=request.take_prefill_stats(),
                trace_headers=request.trace_headers,
            )
            outputs.setdefault(request.client_index, EngineCoreOutputs(outputs=[])).outputs.append(last)


class GatedAsyncScheduler(GatedScheduler, AsyncScheduler):
    """The scheduler for `--async-scheduling`, which runs one step ahead of the device."""
