"""The audit log: one JSON line per decision, written by the engine, so that no client and no front end is
missed. What a line holds: `inferaligner.storage.audit_log`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from inferaligner.storage.audit_log import AuditFile, decision_line
from inferaligner.vllm.settings import EngineSettings

_MORE = ("opened_at",)  # what a report says beyond the decision


class AuditLog:
    """Appends to a file; without one it does nothing."""

    def __init__(self, file: AuditFile | None, aligner: str, tokenizer: Any = None) -> None:
        self._file = file
        self._aligner = aligner
        self._tokenizer = tokenizer

    @classmethod
    def of(cls, config: Any, settings: EngineSettings) -> AuditLog:
        """The log of a deployment. Raises `InputError` if the file cannot be written."""
        if settings.audit_log is None:
            return cls(None, settings.sha256)
        # Without a limit of size: several engines (data parallel) may share the file.
        file = AuditFile(settings.audit_log)
        tokenizer = None
        if settings.audit_text:
            from vllm.tokenizers import cached_tokenizer_from_config

            tokenizer = cached_tokenizer_from_config(config.model_config)
        return cls(file, settings.sha256, tokenizer)

    def write(self, request: Any, report: Mapping[str, Any], bias: float) -> None:
        """One line about a request that was just decided, and one more if a monitor opens its answer."""
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
                **{name: report[name] for name in _MORE if name in report},
            )
        )
