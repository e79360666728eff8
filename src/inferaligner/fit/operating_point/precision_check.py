"""Does a bias that was fitted in one precision hold in another?

The artifact keeps the scores of the held-out prompts, and the contrast set has those prompts: scored again on
the model that is here now, each can be laid beside what it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from inferaligner.artifact import AlignerArtifact
from inferaligner.errors import CalibrationError, InputError
from inferaligner.fit.gate.held_out import held_out_groups
from inferaligner.fit.samples import Samples
from inferaligner.method.decision import opens
from inferaligner.statistics.intervals import Interval, clopper_pearson

HOLDS = 0.02
"""A bias holds where no more than this share of any group's prompts changes sides."""

_GROUPS = ("harmful", "ordinary traffic")


@dataclass(frozen=True)
class FormatShift:
    """One group of prompts, before (as fitted) and now. Scores are in the gate's own unit."""

    group: str
    mean: float  # of score now - score before
    largest: float  # of its absolute value
    changed: int  # prompts that changed sides
    before: Interval  # open rate
    now: Interval

    @property
    def holds(self) -> bool:
        """Whether so few prompts changed sides that the operating point stands."""
        return self.changed <= HOLDS * self.now.n


def format_shifts(
    artifact: AlignerArtifact,
    samples: Samples,
    score: Callable[[Sequence[str]], Sequence[float]],
    *,
    most: int = 100,
) -> list[FormatShift]:
    """Scores up to `most` held-out prompts of each group again; `score` gives scores with the bias.

    Raises:
        InputError: the artifact was fitted on other prompts than `samples`, which are not kept.
        CalibrationError: it keeps no scores, or they are not those of these prompts.
    """
    if artifact.provenance.prompts.get("digest") != samples.described["digest"]:
        raise InputError(
            "This aligner was fitted on prompts of your own, or on another version of the shipped ones; they "
            "are not in it, so they cannot be scored again. Score a file of them in both precisions with "
            "`inferaligner score`, and compare."
        )
    stored = artifact.calibration.get("held_out_scores") or {}
    rows = held_out_groups([float(number) for number in range(len(samples.test))], samples.test)
    shifts = []
    for group in _GROUPS:
        if group not in stored or group not in rows:
            continue
        if len(stored[group]) != len(rows[group]):
            raise CalibrationError(
                f"The aligner keeps {len(stored[group])} scores of held-out {group} prompts, and there are "
                f"{len(rows[group])} of them now. Fit it again."
            )
        # Evenly over the group, which is ordered by kind.
        count = min(most, len(rows[group]))
        picked = np.unique(np.linspace(0, len(rows[group]) - 1, count).round()).astype(int)
        texts = [samples.test[int(rows[group][at])].text for at in picked]
        before = np.array([stored[group][at] for at in picked]) + artifact.gate.bias
        now = np.array(score(texts))
        shifts.append(_shift(group, before, now))
    if not shifts:
        raise CalibrationError(
            "This aligner keeps no held-out scores to compare with; fit it again with this version."
        )
    return shifts


def _shift(group: str, before: np.ndarray, now: np.ndarray) -> FormatShift:
    moved = now - before
    return FormatShift(
        group,
        float(moved.mean()),
        float(np.abs(moved).max()),
        int((opens(before) != opens(now)).sum()),
        clopper_pearson(int(opens(before).sum()), len(before)),
        clopper_pearson(int(opens(now).sum()), len(now)),
    )
