"""The engine's audit log: one JSON line per decision (`inferaligner.storage.audit_log` defines the fields).

The scheduler writes it, so it holds every decision, whatever front end or client a request came from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from inferaligner.storage.audit_log import AuditFile, decision_line
from inferaligner.vllm.settings import EngineSettings


class AuditLog:
    """Appends decisions to a file, with the prompts' text if it has a tokenizer; without a file it does
    nothing. `aligner` is the aligner's digest."""

    def __init__(self, file: AuditFile | None, aligner: str, tokenizer: Any = None) -> None:
        self._file = file
        self._aligner = aligner
        self._tokenizer = tokenizer

    @classmethod
    def from_config(cls, config: Any, settings: EngineSettings) -> AuditLog:
        """The log of a deployment. Raises `InputError` if the file cannot be written."""
        if settings.audit_log is None:
            return cls(None, settings.sha256)
        # No size limit: rotation would break engines that share the file (data parallel).
        file = AuditFile(settings.audit_log)
        tokenizer = None
        if settings.audit_text:
            from vllm.tokenizers import cached_tokenizer_from_config

            tokenizer = cached_tokenizer_from_config(config.model_config)
        return cls(file, settings.sha256, tokenizer)

    def write(self, request: Any, report: Mapping[str, Any], bias: float) -> None:
        """Writes a line about a vLLM `Request` that was just decided, or whose answer a monitor just opened.

        `report` is a `GateReport.public()`, `bias` the gate's bias with which its score was computed.
        """
        if self._file is None:
            return
        tokens = request.prompt_token_ids or []
        text = None if self._tokenizer is None else self._tokenizer.decode(tokens)
        self._file.write(
            decision_line(
                request=request.request_id,
                tokens=tokens,
                score=math.nan if report["score"] is None else report["score"],
                bias=bias,
                is_open=report["open"],
                action=report["action"],
                aligner=self._aligner,
                text=text,
                **{name: report[name] for name in ("opened_at",) if name in report},
            )
        )
