"""Patches of vLLM's front end: they reject prompts that cannot be gated, and record decisions.

Protection does not depend on them: the scheduler checks every prompt again, and decides in any case. The
patches give the client a reason and status 400.
"""

from __future__ import annotations

import functools
from typing import Any

from inferaligner.vllm.decision_reports import REPORTS, Metrics
from inferaligner.vllm.prompts import PromptRules
from inferaligner.vllm.settings import KEY, EngineSettings


def install(*, metrics: bool = False) -> None:
    """Wraps vLLM's input and output processors in this process; a second call changes nothing.

    With `metrics` it also registers the Prometheus metrics.
    """
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import OutputProcessor

    if metrics and REPORTS.metrics is None:
        REPORTS.metrics = Metrics()
    if getattr(InputProcessor, "inferaligner_installed", False):
        return
    InputProcessor.inferaligner_installed = True
    InputProcessor.process_inputs = _checking_prompts(InputProcessor.process_inputs)
    OutputProcessor.process_outputs = _recording_decisions(OutputProcessor.process_outputs)


def _checking_prompts(process_inputs: Any) -> Any:
    @functools.wraps(process_inputs)
    def process(self: Any, *args: Any, **options: Any) -> Any:
        request = process_inputs(self, *args, **options)
        rules = _rules(self)
        if rules is not None and (objection := rules.objection(request)) is not None:
            from vllm.exceptions import VLLMValidationError

            raise VLLMValidationError(objection)  # vLLM answers it with status 400
        return request

    return process


def _rules(processor: Any) -> PromptRules | None:
    if not hasattr(processor, "inferaligner_rules"):
        config = processor.vllm_config
        settings = EngineSettings.from_config(config)
        processor.inferaligner_rules = None if settings is None else PromptRules.from_config(config, settings)
    rules: PromptRules | None = processor.inferaligner_rules
    return rules


def _recording_decisions(process_outputs: Any) -> Any:
    @functools.wraps(process_outputs)
    def process(self: Any, engine_core_outputs: Any, *args: Any, **options: Any) -> Any:
        for output in engine_core_outputs:
            report = (output.kv_transfer_params or {}).get(KEY)
            if report is not None and REPORTS.is_new(output.request_id, report):
                state = self.request_states.get(output.request_id)
                client = output.request_id if state is None else _client_id(state)
                REPORTS.record(output.request_id, client, report)
        return process_outputs(self, engine_core_outputs, *args, **options)

    return process


def _client_id(state: Any) -> str:
    parent = getattr(state, "parent_req", None)
    return str(state.external_req_id if parent is None else parent.external_req_id)
