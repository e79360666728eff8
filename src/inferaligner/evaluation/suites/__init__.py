"""Suites of test prompts, one file per data set; the contract is in `suite.py`."""
