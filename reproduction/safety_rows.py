"""The samples of the Safety SFT baseline: harmful prompts with refusals written for this project.

They come from the contrast set's extraction and calibration parts, so that its test part stays unseen; near-
duplicates of test prompts are left out.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from inferaligner.errors import InputError
from inferaligner.prompts.contrast import load_contrast_set
from reproduction.corpora.corpus import Row
from reproduction.decontamination import Decontamination, decontaminate


def safety_rows(
    count: int, tests: Mapping[str, Sequence[str]], seed: int
) -> tuple[list[Row], Decontamination]:
    """Draws harmful prompts, each with a refusal of its category.

    Args:
        count: The number of prompts.
        tests: The test prompts of each suite.
        seed: Seed of the draw.

    Raises:
        InputError: There are fewer prompts.
    """
    contrast, draw = load_contrast_set(), random.Random(f"{seed}/safety")
    refusals = contrast.refusals()
    prompts = [
        prompt
        for part in ("extraction", "calibration")
        for prompt in contrast.part(part, wrapped=False)
        if prompt.harmful
    ]
    rows = [
        Row(p.text, draw.choice(refusals.get(p.category) or refusals["general"]), p.text) for p in prompts
    ]
    kept, separation = decontaminate(rows, tests)
    if count > len(kept):
        raise InputError(
            f"{count} safety samples are configured, and there are {len(kept)}. Set fewer samples."
        )
    draw.shuffle(kept)
    return kept[:count], separation
