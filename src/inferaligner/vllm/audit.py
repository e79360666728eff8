"""The audit log: one JSON line per decision, written by the engine, so that no client and no front end is
missed. What a line holds: `inferaligner.audit`.
"""

from __future__ import annotations

from typing import Any

from inferaligner.audit import AuditFile, decision_line
from inferaligner.gate import Decision
from inferaligner.vllm.settings import EngineSettings


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

    def write(self, request: Any, decision: Decision, action: str, bias: float) -> None:
        """One line about a request that was just decided."""
        if self._file is None:
            return
        tokens = request.prompt_token_ids or []
        text = None if self._tokenizer is None else self._tokenizer.decode(tokens)
        self._file.write(
            decision_line(
                request=request.request_id,
                tokens=tokens,
                score=decision.score,
                bias=bias,
                is_open=decision.open,
                action=action,
                aligner=self._aligner,
                text=text,
            )
        )
