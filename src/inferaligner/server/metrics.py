"""Prometheus metrics. `inferaligner_requests` and `inferaligner_gate_score` have the same names on vLLM."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import InferAlignerError
from inferaligner.fit.operating_point.drift import Drift, drift_of
from inferaligner.server_shared.gate_report import GateReport

SCORE_BUCKETS = (-8, -4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8)
_SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_RECENT = 1000
_FEWEST = 20


class ServerMetrics:
    """The metrics of one server, in a registry of its own: one process may run several servers."""

    def __init__(self, load: Callable[[], tuple[int, int]], artifact: Callable[[], AlignerArtifact]) -> None:
        """`load` returns the numbers of running rows and waiting prompts, `artifact` the served artifact."""
        self.registry = CollectorRegistry()
        self._recent: deque[float] = deque(maxlen=_RECENT)  # without the gate's bias
        self._lock = Lock()
        self._artifact = artifact

        def counter(name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
            return Counter(f"inferaligner_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"inferaligner_{name}", text, buckets=buckets, registry=self.registry)

        self._requests = counter("requests", "Requests decided by the guidance gate.", ("open", "action"))
        self._scores = histogram(
            "gate_score", "Scores of the guidance gate; above 0 it opens.", SCORE_BUCKETS
        )
        self._monitor = counter(
            "monitor_opened", "Answers that the monitor opened while they were generated."
        )
        self._failed = counter("failed", "Requests that failed in the model or the engine.")
        self._tokens = counter("tokens", "Tokens of prompts and of answers.", ("kind",))
        self._http = counter("http_requests", "HTTP responses by route and status.", ("route", "status"))
        self._latency = histogram(
            "request_seconds", "Seconds from a request to the end of its response.", _SECONDS
        )
        self._first = histogram(
            "first_byte_seconds", "Seconds from a request to the first byte of its response.", _SECONDS
        )
        self._step = histogram("step_seconds", "Seconds of one decoding step of all running rows.", _SECONDS)
        for name, text, at in (
            ("running_rows", "Answers that are being generated.", 0),
            ("queue_depth", "Prompts in the queue.", 1),
        ):
            gauge = Gauge(f"inferaligner_{name}", text, registry=self.registry)
            gauge.set_function(lambda at=at: load()[at])
        self.registry.register(_DriftCollector(self))

    def decided(self, report: GateReport, prompt_tokens: int) -> None:
        """Counts one decision."""
        self._requests.labels(str(report.open).lower(), report.action).inc()
        self._tokens.labels("prompt").inc(prompt_tokens)
        if math.isfinite(report.score):
            self._scores.observe(report.score)
            with self._lock:
                self._recent.append(report.score - report.bias)

    def opened(self) -> None:
        """Counts an answer that a monitor opened."""
        self._monitor.inc()

    def failed(self) -> None:
        """Counts a request that could not be computed."""
        self._failed.inc()

    def stepped(self, tokens: int, seconds: float) -> None:
        """Counts a decoding step."""
        self._tokens.labels("answer").inc(tokens)
        self._step.observe(seconds)

    def answered(self, route: str, status: int, first: float | None, seconds: float) -> None:
        """Counts an HTTP answer."""
        self._http.labels(route, str(status)).inc()
        if route.startswith("/v1/") and route.endswith("completions") and status == 200:
            self._latency.observe(seconds)
            if first is not None:
                self._first.observe(first)

    def drift(self) -> Drift | None:
        """Compares the latest scores with the calibration's.

        Returns:
            None where there are fewer than 20 scores, or the artifact holds none to compare with.
        """
        artifact = self._artifact()
        with self._lock:
            scores = [score + artifact.gate.bias for score in self._recent]
        if len(scores) < _FEWEST:
            return None
        try:
            return drift_of(artifact, "live traffic", scores)
        except InferAlignerError:
            return None

    def page(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return bytes(generate_latest(self.registry))


class _DriftCollector(Collector):  # type: ignore[misc]
    """Metrics of drift, computed from the latest 1000 decisions when the page is read."""

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        drift = self._metrics.drift()
        if drift is None:
            return
        for name, text, value in (
            (
                "drift_distance",
                "Kolmogorov-Smirnov distance of recent scores from the calibration's.",
                drift.distance,
            ),
            ("drift_p_value", "Probability of at least this distance without drift.", drift.p_value),
            ("recent_open_rate", "Share of recent requests above the operating point.", drift.open.value),
            (
                "open_rate_limit",
                "False-open rate that the operating point allows.",
                drift.limit,
            ),
        ):
            yield GaugeMetricFamily(f"inferaligner_{name}", text, value=value)
