"""Files that the package writes and reads: atomic writing, JSON, records in an artifact, audit log, card."""
