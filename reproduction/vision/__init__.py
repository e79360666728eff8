"""A LLaVA on SmolLM2-135M whose pictures this project draws: `python -m reproduction.vision.train`."""
