"""The command line: one file per command, put together in `main.py`.

Nothing here imports torch or transformers while it is itself imported, so that `--help` is instant.
"""
