"""The threshold that the labelled prompts' own ordinary traffic sets, before any traffic of the user's.

The scores are out of fold: each from a gate fitted without the prompt and its twin, but not from the gate
that is kept, and that gate was chosen on them. A promise made from them is therefore nominal
(docs/calibration.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from inferaligner.errors import InputError
from inferaligner.fit.operating_point.choice import Rank, promised_threshold, rank_for
from inferaligner.fit.samples import Sample

ContrastRule = Literal["quantile", "promise", "promise-per-kind"]

CONTRAST_RULE: ContrastRule = "quantile"
"""What `fit` does unless it is told otherwise."""

POOLED = "contrast set"


def contrast_traffic(scores: Sequence[float], samples: Sequence[Sample]) -> dict[str, list[float]]:
    """Scores of ordinary traffic, pooled and by kind; where none is labelled, of all harmless prompts."""
    rows = list(zip(scores, samples, strict=True))
    kinds = sorted({sample.group for _, sample in rows if sample.ordinary})
    if not kinds:
        return {"harmless prompts": [float(score) for score, sample in rows if not sample.harmful]}
    found = {POOLED: [float(score) for score, sample in rows if sample.ordinary]}
    for kind in kinds:
        found[f"{POOLED}: {kind}"] = [
            float(s) for s, sample in rows if sample.ordinary and sample.group == kind
        ]
    return found


def contrast_threshold(
    traffic: Mapping[str, Sequence[float]],
    max_false_open: float,
    confidence: float,
    rule: ContrastRule = CONTRAST_RULE,
) -> tuple[float, dict[str, Rank]]:
    """The threshold, on scores whose zero is the plain quantile of all ordinary traffic; and who is promised.

    - "quantile": that zero. At most the limit of the prompts in hand lies above; nothing is promised.
    - "promise": the order statistic for all ordinary traffic pooled.
    - "promise-per-kind": the largest of that and of the order statistic of every kind with enough prompts for
      the promise.

    `traffic` is what `contrast_traffic` found: the pool first. Raises `InputError` for another rule.
    """
    if rule not in get_args(ContrastRule):
        raise InputError(f"contrast rule {rule!r}: expected one of {', '.join(get_args(ContrastRule))}")
    if rule == "quantile" or not traffic:
        return 0.0, {}
    pool = next(iter(traffic))
    bounded = {
        name: scores
        for name, scores in traffic.items()
        if name == pool
        or (rule == "promise-per-kind" and rank_for(len(scores), max_false_open, confidence).promised)
    }
    threshold, ranks = promised_threshold(bounded, max_false_open, confidence)
    return max(0.0, threshold), ranks
