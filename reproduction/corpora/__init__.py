"""Data for fine-tuning, one file per corpus; `corpus.py` has the interface, `catalogue.py` the names."""
