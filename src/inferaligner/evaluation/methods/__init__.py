"""Ways of making a model answer safely, one file per method; the contract is in `method.py`."""
