"""The front end's part: prompts that cannot be gated are refused with a reason, and decisions are noted.

`install` puts both around vLLM's own classes, once per process. Neither is what protects: the scheduler
checks every prompt again, and decides whether or not anybody here listens.
"""

from __future__ import annotations

import functools
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any

from inferaligner.vllm.prompts import PromptRules
from inferaligner.vllm.settings import KEY, EngineSettings

_REMEMBERED = 10_000


@dataclass
class Reports:
    """What the engine told about recent requests, by the id that the client sees; and counts of all of
    them."""

    by_request: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    counts: Counter[str] = field(default_factory=Counter)
    metrics: Metrics | None = None

    def note(self, internal: str, client: str, report: dict[str, Any]) -> None:
        """Notes the decision of a request, and once more if a monitor opens its answer; otherwise a second
        time it does nothing."""
        if report.get("action") == "undecided" or not self.is_news(internal, report):
            return
        first, opened = internal not in self.by_request, "opened_at" in report
        for name in {internal, client}:
            # Of several answers to one prompt, the one that was opened is told of.
            if opened or "opened_at" not in self.by_request.get(name, {}):
                self.by_request[name] = report
        if opened:
            self.counts["opened by the monitor"] += 1
            if self.metrics is not None:
                self.metrics.note_monitor()
        if not first:
            return
        while len(self.by_request) > _REMEMBERED:
            self.by_request.popitem(last=False)
        self.counts["requests"] += 1
        self.counts["opened"] += bool(report.get("open"))
        self.counts[str(report.get("action"))] += 1
        if self.metrics is not None:
            self.metrics.note(report)

    def is_news(self, internal: str, report: dict[str, Any]) -> bool:
        """Whether a report says more than what is noted of that request."""
        known = self.by_request.get(internal)
        return known is None or known.get("opened_at") != report.get("opened_at")

    def of(self, client: str) -> dict[str, Any] | list[dict[str, Any]] | None:
        """The report on a request; a list for one that held several prompts."""
        if (found := self.by_request.get(client)) is not None:
            return found
        several: list[dict[str, Any]] = []
        while (each := self.by_request.get(f"{client}-{len(several)}")) is not None:
            several.append(each)
        return several[0] if len(several) == 1 else several or None


class Metrics:
    """Prometheus metrics, on vLLM's own /metrics page."""

    def __init__(self) -> None:
        from prometheus_client import Counter as Counts
        from prometheus_client import Histogram

        self._requests = Counts(
            "inferaligner_requests", "Requests decided by the guidance gate.", ["open", "action"]
        )
        self._scores = Histogram(
            "inferaligner_gate_score",
            "Scores of the guidance gate; above 0 it opens.",
            buckets=(-8, -4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8),
        )

        self._monitor = Counts("inferaligner_monitor_opened", "Answers that the monitor opened on the way.")

    def note_monitor(self) -> None:
        """Counts an answer that the monitor opened."""
        self._monitor.inc()

    def note(self, report: dict[str, Any]) -> None:
        """Counts one decision."""
        self._requests.labels(str(bool(report.get("open"))).lower(), str(report.get("action"))).inc()
        score = report.get("score")
        if score is not None and math.isfinite(score):
            self._scores.observe(score)


REPORTS = Reports()
"""Of this process. State of the front end, not of an engine: ids of requests are unique across engines."""


def install(*, metrics: bool = False) -> None:
    """Wraps vLLM's input and output processors in this process; a second call changes nothing."""
    from vllm.v1.engine.input_processor import InputProcessor
    from vllm.v1.engine.output_processor import OutputProcessor

    if metrics and REPORTS.metrics is None:
        REPORTS.metrics = Metrics()
    if getattr(InputProcessor, "inferaligner_installed", False):
        return
    InputProcessor.inferaligner_installed = True
    InputProcessor.process_inputs = _checked(InputProcessor.process_inputs)
    OutputProcessor.process_outputs = _noted(OutputProcessor.process_outputs)


def _checked(process_inputs: Any) -> Any:
    @functools.wraps(process_inputs)
    def process(self: Any, *args: Any, **options: Any) -> Any:
        request = process_inputs(self, *args, **options)
        rules = _rules(self)
        if rules is not None:
            objection = rules.objection(request)
            if objection is not None:
                from vllm.exceptions import VLLMValidationError

                raise VLLMValidationError(objection)  # what vLLM answers with status 400
        return request

    return process


def _rules(processor: Any) -> PromptRules | None:
    if not hasattr(processor, "inferaligner_rules"):
        config = processor.vllm_config
        settings = EngineSettings.of(config)
        processor.inferaligner_rules = None if settings is None else PromptRules.of(config, settings)
    found: PromptRules | None = processor.inferaligner_rules
    return found


def _noted(process_outputs: Any) -> Any:
    @functools.wraps(process_outputs)
    def process(self: Any, engine_core_outputs: Any, *args: Any, **options: Any) -> Any:
        for output in engine_core_outputs:
            report = (output.kv_transfer_params or {}).get(KEY)
            if report is not None and REPORTS.is_news(output.request_id, report):
                state = self.request_states.get(output.request_id)
                client = output.request_id if state is None else _client_id(state)
                REPORTS.note(output.request_id, client, report)
        return process_outputs(self, engine_core_outputs, *args, **options)

    return process


def _client_id(state: Any) -> str:
    parent = getattr(state, "parent_req", None)
    return str(state.external_req_id if parent is None else parent.external_req_id)
