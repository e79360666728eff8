"""Decontamination: training rows that are near-duplicates of a test prompt are left out and counted.

Two texts are compared by their content words (`inferaligner.prompts.similarity`): they are near-duplicates if
their Jaccard similarity reaches `THRESHOLD`, or if a test prompt contains nearly all content words of the
training row (`CONTAINED`). Test prompts have an instruction that training rows may have or not, which would
distort the comparison in both cases. So the words that many prompts of one suite share are removed first, and
a training row is compared by its `key`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from inferaligner.errors import InputError
from inferaligner.prompts.similarity import content_words
from reproduction.corpora.corpus import Row

THRESHOLD = 0.6
CONTAINED = 0.85
_FEWEST = 4  # content words of a key; containment means nothing for fewer
_SHARED = 0.3  # of a suite's prompts; a word of so many prompts belongs to their instruction


@dataclass(frozen=True)
class Decontamination:
    """The number of rows left out of one corpus, by the suite of the test prompts."""

    rows: int
    kept: int
    left_out: Mapping[str, int]

    def described(self) -> dict[str, Any]:
        """The fields for a report."""
        return asdict(self)


def decontaminate(
    rows: Sequence[Row], tests: Mapping[str, Sequence[str]]
) -> tuple[list[Row], Decontamination]:
    """Leaves out the rows that are near-duplicates of a test prompt.

    Args:
        rows: The rows of one corpus.
        tests: The prompts of each suite.

    Returns:
        The other rows, and the counts.

    Raises:
        InputError: No row is left.
    """
    lost: dict[str, set[int]] = {}
    for suite, prompts in tests.items():
        frame = frame_words(prompts)
        found = _near(
            [content_words(row.key) - frame for row in rows],
            [content_words(prompt) - frame for prompt in prompts],
        )
        # An exact copy is a duplicate even if all of its words belong to the suite's instruction.
        exact = set(prompts)
        found |= {at for at, row in enumerate(rows) if row.prompt in exact or row.key in exact}
        if found:
            lost[suite] = found
    gone = set().union(*lost.values())
    kept = [row for at, row in enumerate(rows) if at not in gone]
    if rows and not kept:
        raise InputError(
            f"All {len(rows)} rows are near-duplicates of test prompts ({', '.join(lost)}). Expected other "
            "rows; take another corpus, or fewer test prompts."
        )
    return kept, Decontamination(len(rows), len(kept), {suite: len(found) for suite, found in lost.items()})


def _near(keys: Sequence[frozenset[str]], tests: Sequence[frozenset[str]]) -> set[int]:
    """The indices of the keys that are near-duplicates of a test."""
    holders: dict[str, list[int]] = defaultdict(list)
    for at, words in enumerate(tests):
        for word in words:
            holders[word].append(at)
    found = set()
    for index, key in enumerate(keys):
        shared = Counter(at for word in key for at in holders.get(word, ()))
        for at, count in shared.items():
            alike = count / (len(key) + len(tests[at]) - count)
            inside = count / len(key) if len(key) >= _FEWEST else 0.0
            if alike >= THRESHOLD or inside >= CONTAINED:
                found.add(index)
                break
    return found


def frame_words(prompts: Sequence[str]) -> frozenset[str]:
    """The content words that a large share of the prompts have: their instruction."""
    if len(prompts) < 10:  # words that a few prompts share may be their subject
        return frozenset()
    counts = Counter(word for prompt in prompts for word in content_words(prompt))
    return frozenset(word for word, count in counts.items() if count >= _SHARED * len(prompts))
