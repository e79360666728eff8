"""Replies of judges on the disk, in a database that several runs may use at the same time."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from pathlib import Path

from inferaligner.errors import InputError


class ReplyCache:
    """Replies by the key of their question (`key_of_question`)."""

    def __init__(self, file: Path) -> None:
        """Raises `InputError` if the file cannot be used."""
        self._lock = threading.Lock()
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(file, check_same_thread=False, timeout=60)
            self._database.execute("CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT)")
            self._database.commit()
        except (OSError, sqlite3.Error) as error:
            raise InputError(
                f"The judge's cache {file} cannot be used ({error}); give another one."
            ) from None

    def get(self, key: str) -> str | None:
        """The reply to a question, or None if it was not asked before."""
        with self._lock:
            row = self._database.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, reply: str) -> None:
        """Stores a reply; it is on the disk when this returns."""
        with self._lock:
            self._database.execute("INSERT OR REPLACE INTO replies VALUES (?, ?)", (key, reply))
            self._database.commit()

    def close(self) -> None:
        """Closes the database."""
        self._database.close()


def key_of_question(*parts: str) -> str:
    """A key of everything that a reply depends on: the endpoint, the model and the question."""
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()
