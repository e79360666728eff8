"""`aligner.json`, the settings of an artifact: schema versions, checksum and reading."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from inferaligner.errors import ArtifactError

SETTINGS_FILE = "aligner.json"

SCHEMA_VERSION = 1
MONITOR_SCHEMA_VERSION = 2
LEARNED_SCHEMA_VERSION = 3
"""Versions of artifacts with a monitor, and with learned vectors: older releases would drop both, and must
refuse such an artifact."""


def read_settings(place: Path) -> dict[str, Any]:
    """Reads the settings of the artifact in a folder and verifies their version and checksum.

    Raises:
        ArtifactError: the file is missing, unreadable, altered, or of an unknown version.
    """
    file = place / SETTINGS_FILE
    if not os.path.isfile(file):  # unlike Path.is_file, False also for a name that is too long
        raise ArtifactError(
            f"{place} is not an aligner: there is no {SETTINGS_FILE}. "
            "Give the folder that `inferaligner fit` wrote."
        )
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{file} is not readable JSON ({error}): truncated or altered. Copy it again."
        ) from None
    known = (SCHEMA_VERSION, MONITOR_SCHEMA_VERSION, LEARNED_SCHEMA_VERSION)
    if not isinstance(settings, dict) or settings.get("schema_version") not in known:
        version = settings.get("schema_version") if isinstance(settings, dict) else None
        raise ArtifactError(
            f"{file} has schema version {version}; this version of inferaligner reads "
            f"{SCHEMA_VERSION} to {LEARNED_SCHEMA_VERSION}. "
            "Install the matching version, or fit the aligner again."
        )
    if settings.pop("checksum", None) != checksum(settings):
        raise ArtifactError(
            f"{file} was altered after it was written (its checksum does not match). "
            "Change settings with the command line or the library, not in the file."
        )
    return settings


def checksum(settings: dict[str, Any]) -> str:
    """SHA-256 over settings (without the field `checksum`) as canonical JSON."""
    # Over ASCII, because text such as a path may hold half of a surrogate pair, which UTF-8 cannot encode.
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
