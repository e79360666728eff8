"""Sends the engine's reports to the metrics and the audit log, and failures to the server's log."""

from __future__ import annotations

import logging
from typing import Any

from inferaligner.server.engine.engine import Observer
from inferaligner.server.engine.jobs import Job
from inferaligner.server.metrics import ServerMetrics
from inferaligner.server_shared.gate_report import GateReport
from inferaligner.storage.audit_log import AuditFile, decision_line

log = logging.getLogger("inferaligner.server")


class EventLog(Observer):
    """The observer of a server's engine."""

    def __init__(self, metrics: ServerMetrics, audit: AuditFile | None, tokenizer: Any = None) -> None:
        """`tokenizer` is given where the audit log holds the prompts."""
        self.metrics = metrics
        self._audit = audit
        self._tokenizer = tokenizer

    def decided(self, job: Job, report: GateReport) -> None:
        """Records a decision."""
        self.metrics.decided(report, len(job.prompt.tokens))
        self._write(job, report)

    def opened(self, job: Job, report: GateReport) -> None:
        """Records that a monitor opened an answer, in a further line of the audit log."""
        self.metrics.opened()
        self._write(job, report)

    def failed(self, job: Job | None, error: Exception) -> None:
        """Records a failure with its traceback, without the prompt."""
        self.metrics.failed()
        log.error("%s failed", "the engine" if job is None else job.id, exc_info=error)

    def stepped(self, rows: int, tokens: int, seconds: float) -> None:
        """Counts a decoding step."""
        self.metrics.stepped(tokens, seconds)

    def _write(self, job: Job, report: GateReport) -> None:
        if self._audit is None:
            return
        text = None if self._tokenizer is None else str(self._tokenizer.decode(job.prompt.tokens))
        more: dict[str, Any] = {} if report.opened_at is None else {"opened_at": report.opened_at}
        if job.strength is not None:
            more["strength"] = job.strength
        try:
            self._audit.write(
                decision_line(
                    request=job.id,
                    tokens=job.prompt.tokens,
                    score=report.score,
                    bias=report.bias,
                    is_open=report.open,
                    action=report.action,
                    aligner=report.aligner,
                    text=text,
                    **more,
                )
            )
        except (OSError, ValueError) as error:
            log.error("the audit log cannot be written: %s", error)
