"""A seeded draw of prompts from a suite."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from inferaligner.errors import InputError
from inferaligner.evaluation.suites.suite import Item, Suite
from inferaligner.prompts.images import text_of


@dataclass(frozen=True)
class Subset:
    """The prompts of a suite that one run uses."""

    suite: Suite
    items: tuple[Item, ...]
    total: int  # distinct prompts of the whole suite
    seed: int

    @property
    def described(self) -> str:
        """The number of prompts and of how many they were drawn, for reports."""
        if len(self.items) == self.total:
            return f"all {self.total}"
        return f"{len(self.items)} of {self.total}, drawn with seed {self.seed}"


def draw(suite: Suite, items: Sequence[Item], limit: int | None, seed: int) -> Subset:
    """Draws at most `limit` distinct prompts, the same for the same seed, in the source's order.

    Raises:
        InputError: the suite has no prompt.
    """
    nonempty = [item for item in items if text_of(item.prompt).strip()]
    distinct = list({(item.prompt, item.answer): item for item in nonempty}.values())
    if not distinct:
        raise InputError(f"The suite {suite.name} has no prompts; expected at least one.")
    if limit is None or limit >= len(distinct):
        return Subset(suite, tuple(distinct), len(distinct), seed)
    # The name is part of the seed, or the draws of two suites of one length would be the same rows.
    rows = sorted(random.Random(f"{seed}/{suite.name}").sample(range(len(distinct)), limit))
    return Subset(suite, tuple(distinct[row] for row in rows), len(distinct), seed)
