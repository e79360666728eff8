"""The gate's decisions as the front end sees them: reports on recent requests, counts and metrics.

The engine attaches a report to every output of a request (`KEY` in `kv_transfer_params`).
`frontend_patches.py` records it in `REPORTS`; `http.py` reads `REPORTS`, and `gate_of` reads one output.
"""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Any

from inferaligner.errors import InputError
from inferaligner.vllm.settings import KEY

_REMEMBERED = 10_000


def gate_of(output: Any) -> dict[str, Any]:
    """The gate's report on a finished request.

    Args:
        output: a `vllm.RequestOutput`.

    Returns:
        `open`, `score` (None if it is not finite), `layer`, `strength`, `action` and `aligner`; `opened_at`
        if a monitor opened the answer.

    Raises:
        InputError: the request is not finished, or its engine runs without an aligner.
    """
    report = (getattr(output, "kv_transfer_params", None) or {}).get(KEY)
    if report is None:
        raise InputError(
            "This output carries no decision: it is not finished, or its engine runs without an aligner."
        )
    return dict(report)


@dataclass
class Reports:
    """Reports on the most recent requests, by the id that the client sees, and counts over all requests."""

    by_request: OrderedDict[str, dict[str, Any]] = field(default_factory=OrderedDict)
    counts: Counter[str] = field(default_factory=Counter)
    metrics: Metrics | None = None

    def record(self, internal: str, client: str, report: dict[str, Any]) -> None:
        """Records the decision of a request, and a second report if a monitor opens its answer.

        `internal` is the id of one answer inside vLLM, `client` the id that the client sees, which several
        answers may share. A report that brings nothing new is ignored.
        """
        if report.get("action") == "undecided" or not self.is_new(internal, report):
            return
        first, opened = internal not in self.by_request, "opened_at" in report
        for name in {internal, client}:
            # Of several answers to one prompt, keep the report of one that the monitor opened.
            if opened or "opened_at" not in self.by_request.get(name, {}):
                self.by_request[name] = report
        if opened:
            self.counts["opened by the monitor"] += 1
            if self.metrics is not None:
                self.metrics.record_monitor()
        if not first:
            return
        while len(self.by_request) > _REMEMBERED:
            self.by_request.popitem(last=False)
        self.counts["requests"] += 1
        self.counts["opened"] += bool(report.get("open"))
        self.counts[str(report.get("action"))] += 1
        if self.metrics is not None:
            self.metrics.record(report)

    def is_new(self, internal: str, report: dict[str, Any]) -> bool:
        """Whether a report says more than the recorded one of that answer."""
        known = self.by_request.get(internal)
        return known is None or known.get("opened_at") != report.get("opened_at")

    def of(self, client: str) -> dict[str, Any] | list[dict[str, Any]] | None:
        """The report on a request; a list if the request held several prompts; None if there is none."""
        if (report := self.by_request.get(client)) is not None:
            return report
        several: list[dict[str, Any]] = []
        while (report := self.by_request.get(f"{client}-{len(several)}")) is not None:
            several.append(report)
        return several[0] if len(several) == 1 else several or None


class Metrics:
    """Prometheus metrics, shown on vLLM's own /metrics page."""

    def __init__(self) -> None:
        from prometheus_client import Counter as PrometheusCounter
        from prometheus_client import Histogram

        self._requests = PrometheusCounter(
            "inferaligner_requests", "Requests decided by the guidance gate.", ["open", "action"]
        )
        self._scores = Histogram(
            "inferaligner_gate_score",
            "Scores of the guidance gate; above 0 it opens.",
            buckets=(-8, -4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8),
        )
        self._monitor = PrometheusCounter(
            "inferaligner_monitor_opened", "Answers that the monitor opened while they were generated."
        )

    def record_monitor(self) -> None:
        """Counts an answer that the monitor opened."""
        self._monitor.inc()

    def record(self, report: dict[str, Any]) -> None:
        """Counts one decision."""
        self._requests.labels(str(bool(report.get("open"))).lower(), str(report.get("action"))).inc()
        score = report.get("score")
        if score is not None and math.isfinite(score):
            self._scores.observe(score)


REPORTS = Reports()
"""The reports of this process. Request ids are unique, so several engines may share it."""
