"""Ways of making a model safe: one per file, see `method.py` for the interface."""
