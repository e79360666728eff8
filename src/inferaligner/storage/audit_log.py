"""The audit log: one JSON line per decision of a gate, in the same form from every engine.

A prompt is recorded as a hash (SHA-256 over its token ids) unless the operator wants the text. A line holds
the gate's bias beside the score, so that `inferaligner calibrate --scores` can read logs that were written
under several operating points.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from array import array
from collections.abc import Sequence
from datetime import datetime, timezone
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from inferaligner.errors import InputError
from inferaligner.storage.paths import expanded


def prompt_digest(tokens: Sequence[int]) -> str:
    """SHA-256 over token ids, each as a 64-bit integer."""
    return hashlib.sha256(array("q", tokens).tobytes()).hexdigest()


def decision_line(
    *,
    request: str,
    tokens: Sequence[int],
    score: float,
    bias: float,
    is_open: bool,
    action: str,
    aligner: str,
    text: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """The line of one decision.

    Args:
        request: id of the request.
        tokens: token ids of the prompt.
        score: of the gate; recorded as null where it is not finite.
        bias: of the gate, part of the score.
        is_open: whether the gate opened.
        action: what the server did, see `server_shared.gate_report.Action`.
        aligner: digest of the artifact; its first 12 characters are recorded.
        text: the prompt, where it is to be recorded.
        more: further fields, of one engine.
    """
    line = {
        "time": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        "request": request,
        "prompt_sha256": prompt_digest(tokens),
        "prompt_tokens": len(tokens),
        "score": score if math.isfinite(score) else None,
        "bias": bias,
        "open": is_open,
        "action": action,
        "aligner": aligner[:12],
        **more,
    }
    return line if text is None else {**line, "prompt": text}


class AuditFile:
    """The file of an audit log. Several threads may write to it; without a limit, several processes too."""

    def __init__(self, file: str | Path, *, max_bytes: int | None = None, keep: int = 10) -> None:
        """Opens the file, and creates it with its folder where there is none.

        Args:
            file: path of the log.
            max_bytes: size at which a new file begins; None for no limit.
            keep: number of former files to keep: `NAME.1` is the latest of them, then `NAME.2` and so on.

        Raises:
            InputError: the file cannot be written.
        """
        self.path = expanded(file)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handler = _AuditHandler(self.path, max_bytes or 0, keep)
        except OSError as error:
            raise InputError(f"The audit log {self.path} cannot be written ({error.strerror}).") from None

    def write(self, line: dict[str, Any]) -> None:
        """Appends one line and hands it to the operating system.

        Raises:
            OSError: the file cannot be written.
        """
        self._handler.handle(logging.makeLogRecord({"msg": json.dumps(line, ensure_ascii=False)}))

    def close(self) -> None:
        """Closes the file."""
        self._handler.close()


class _AuditHandler(RotatingFileHandler):
    """The standard library's rotation, for files that only their owner may read, with errors raised."""

    def __init__(self, file: Path, max_bytes: int, keep: int) -> None:
        super().__init__(file, maxBytes=max_bytes, backupCount=keep, encoding="utf-8", errors="replace")

    def _open(self) -> Any:
        return open(
            self.baseFilename,
            self.mode,
            encoding=self.encoding,
            errors=self.errors,
            opener=lambda path, flags: os.open(path, flags, 0o600),
        )

    def shouldRollover(self, record: logging.LogRecord) -> bool:
        # The standard library counts characters instead of bytes, and in Python 3.10 rotates an empty file.
        if not self.maxBytes or not os.path.isfile(self.baseFilename):
            return False
        written = os.path.getsize(self.baseFilename)
        size = len(f"{self.format(record)}\n".encode("utf-8", "replace"))
        return written > 0 and written + size > self.maxBytes

    def doRollover(self) -> None:
        if not self.backupCount:  # the standard library would append to the full file
            os.unlink(self.baseFilename)
        super().doRollover()

    def handleError(self, record: logging.LogRecord) -> None:
        raise  # the exception that is being handled where this is called
