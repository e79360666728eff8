"""The audit log: one JSON line per decision of a gate, the same from every engine.

Prompts are hashed (SHA-256 over their token ids) unless the operator asks for the text. A line holds the
gate's bias beside the score, so that `inferaligner calibrate --scores` can read logs across changes of the
operating point.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import threading
from array import array
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from inferaligner.errors import InputError
from inferaligner.storage.paths import expanded


def prompt_digest(tokens: Sequence[int]) -> str:
    """SHA-256 over token ids, as 64-bit integers."""
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
    """What is written about one decision; `more` are an engine's own fields."""
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
    """Appends lines; begins a new file when one has `max_bytes`, and keeps the last `keep` of them.

    Files of before are `NAME.1` (the latest), `NAME.2` and so on. Without a limit, several processes may
    append to one file.
    """

    def __init__(self, file: str | Path, *, max_bytes: int | None = None, keep: int = 10) -> None:
        """Raises `InputError` if the file cannot be written."""
        self.place = expanded(file)
        self._max_bytes = max_bytes
        self._keep = keep
        self._lock = threading.Lock()
        self._file = self._open()

    def write(self, line: dict[str, Any]) -> None:
        """One line, on disk as far as this process is concerned when it returns. Raises `OSError`."""
        text = json.dumps(line, ensure_ascii=False) + "\n"
        with self._lock:
            size = self._file.tell() + len(text.encode("utf-8", "replace"))
            if self._max_bytes is not None and self._file.tell() > 0 and size > self._max_bytes:
                self._rotate()
            self._file.write(text)

    def close(self) -> None:
        """Nothing can be written afterwards."""
        with self._lock:
            self._file.close()

    def _open(self) -> IO[str]:
        try:
            self.place.parent.mkdir(parents=True, exist_ok=True)
            # Line-buffered appends, for the operator's eyes only.
            handle = os.open(self.place, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            file = os.fdopen(handle, "a", buffering=1, encoding="utf-8", errors="replace")
        except OSError as error:
            raise InputError(f"The audit log {self.place} cannot be written ({error.strerror}).") from None
        file.seek(0, os.SEEK_END)
        return file

    def _rotate(self) -> None:
        self._file.close()
        self._numbered(self._keep).unlink(missing_ok=True)
        for number in range(self._keep - 1, 0, -1):
            if (older := self._numbered(number)).exists():
                older.rename(self._numbered(number + 1))
        if self._keep:
            self.place.rename(self._numbered(1))
        else:
            self.place.unlink()
        self._file = self._open()

    def _numbered(self, number: int) -> Path:
        return self.place.with_name(f"{self.place.name}.{number}")
