"""Test suites: one small declaration per file, see `suite.py` for what one is."""
