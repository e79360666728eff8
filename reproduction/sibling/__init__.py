"""The aligned sibling: a LoRA adapter that declines harmful requests in whole answers, and ends them.

`prompts.py` says what is asked, `answers.py` what the target answers by itself, `training.py` how the adapter
learns both, `figures.py` how good it is; `python -m reproduction.sibling` does all of it.
"""
